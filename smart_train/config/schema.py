"""Define the recipe as typed dataclasses: every key, its default, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import isclass, isfunction
from typing import Any, Literal

from smart_train.core.errors import ExtensionError, SettingError
from smart_train.core.paths import expand_home


@dataclass
class Where:
    """Where the keys of a recipe were written, so that an error can point there.

    lines: dotted key -> line in ``file`` (1 = first), or None for the command line; keys left at their default are
        absent
    """

    file: str = "recipe"
    lines: dict[str, int | None] = field(default_factory=dict)

    def line(self, key: str) -> int | None:
        """Line of the key, or of the nearest block around it that was written; None = command line, 0 = nowhere."""
        parts = key.split(".") if key else []
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.lines[name] for name in names if name in self.lines), 0)

    def place(self, key: str) -> str:
        """'FILE, line N', 'command line', or FILE."""
        line = self.line(key)
        return "command line" if line is None else f"{self.file}, line {line}" if line else self.file


@dataclass(frozen=True)
class Component:
    """A part that a recipe chooses by name: a loss term, a head, a token filter, a reader, a callback ...

    A recipe writes a short name, ``package.module:Class``, or ``{type: NAME, option: value}``. A Python program may
    write the class or function itself in place of its name. ``Registry.create`` in ``smart_train.core.registry`` makes
    the object.

    >>> Component.parse({"type": "linear", "bias": True})
    Component(type='linear', options={'bias': True})
    >>> Component("linear").plain()
    'linear'
    """

    type: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any) -> Component | None:
        """Return the component that a plain value, a class or a function writes; None if it writes none.

        >>> from collections import Counter
        >>> Component.parse(Counter)
        Component(type='collections:Counter', options={})
        """
        if isinstance(value, dict):
            name, options = value.get("type"), {name: option for name, option in value.items() if name != "type"}
        else:
            name, options = value, {}
        if isclass(name) or isfunction(name):
            name = f"{name.__module__}:{name.__qualname__}"
            if "<" in name:
                raise ExtensionError(
                    f"{name} cannot be found again by its name", "define it at the top level of a module"
                )
        return cls(name, options) if isinstance(name, str) and name else None

    def plain(self) -> str | dict[str, Any]:
        """Return the component as a recipe writes it; ``parse`` reads it back."""
        return {"type": self.type, **self.options} if self.options else self.type


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""sentence-transformers' modes of its Pooling module."""


@dataclass
class ModelBlock:
    """The block ``model``: the base, and how it reads texts and images."""

    base: str = ""  # Hub id, local folder, or package:NAME/FOLDER (a model that an installed Python package carries)
    revision: str | None = None  # Hub branch, tag or commit; pin it, or the weights may change later
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the base in memory; auto = as it is stored
    quantisation: Literal["none", "4bit"] = "none"  # 4bit (QLoRA): the frozen base in a quarter of the memory; slower
    pooling: PoolingMode | None = None  # replaces the base's pooling; null = the base's own; the log names it
    attention: str | None = None  # sdpa, flash_attention_2, eager ...; null = what transformers chooses
    dropout: float | None = None  # dropout rate of the base in training; null = its own; 0 is a third faster on a CPU
    trust_remote_code: bool = False  # run model code of the base's repository
    query_prompt: str | None = None  # text before a query (chat models: the system message); null = the base's own
    document_prompt: str | None = None  # the same for a document
    query_tokens: int | None = None  # longest query text, in tokens; null = the base's own limit; images are never cut
    document_tokens: int | None = None  # longest document text, in tokens; null = the base's own limit
    min_pixels: int | None = None  # least pixels of an image; smaller images are enlarged
    max_pixels: int | None = None  # most pixels of an image; tokens per page and memory grow with it
    matryoshka: list[int] = field(default_factory=list)  # shorter pooled widths that are trained too, such as [256, 64]


@dataclass
class HybridBlock:
    """The block ``late.hybrid``: how pooled and late scores are added; scores are divided by the sum of the weights."""

    pooled: float = 1.0  # weight of the pooled score
    late: float = 1.0  # weight of the late score; the best value differs between models: calibrate it
    scaling: Literal["none", "standardised"] = "none"  # standardised: (score - mean) / std, fitted on the dev split
    pooled_mean: float = 0.0  # mean of the pooled scores; all four constants are fitted and stored with the adapter
    pooled_std: float = 1.0  # standard deviation of the pooled scores, above 0
    late_mean: float = 0.0  # mean of the late scores
    late_std: float = 1.0  # standard deviation of the late scores, above 0


@dataclass
class LateBlock:
    """The block ``late``: token vectors from hidden states."""

    layer: int | list[int] = -1  # 0 = embeddings, k = output of block k, -1 = last; a list = a learned mix of layers
    norm: Literal["auto", "final", "none"] = "auto"  # of layers before the last; auto = the model's final norm, if any
    head: Component = field(
        default_factory=lambda: Component("none")
    )  # none, linear, layernorm_linear, gated_residual ...
    dim: int | None = None  # token width; null = hidden size; head none keeps the first dimensions
    matryoshka: list[int] = field(default_factory=list)  # shorter token widths that are trained too, such as [64, 32]
    keep: list[Component] = field(default_factory=list)  # token filters: no_punctuation, or your own; all must agree
    drop: list[Literal["punctuation"]] = field(default_factory=list)  # [punctuation] = keep: [no_punctuation]
    hybrid: HybridBlock = field(default_factory=HybridBlock)  # how pooled and late score are added

    def __post_init__(self) -> None:
        """Let Python programs write components as recipes do: ``LateBlock(head="linear")``."""
        self.head = _component("late.head", self.head)
        self.keep = [_component("late.keep", one) for one in self.keep]

    @property
    def token_filters(self) -> list[Component]:
        """Filters besides padding, control and pooled tokens, those of ``drop`` included."""
        dropped = [Component("no_punctuation")] if "punctuation" in self.drop else []
        return [*dropped, *(one for one in self.keep if one not in dropped)]

    @property
    def extensions(self) -> list[str]:
        """Names of the head and the token filters, as ``trust_extensions`` of ``from_pretrained`` takes them."""
        return list(dict.fromkeys(one.type for one in (self.head, *self.keep)))


def _component(key: str, value: Any) -> Component:
    component = value if isinstance(value, Component) else Component.parse(value)
    if component is None:
        raise SettingError(key, f"is {value!r}", "write a name, package.module:Class or {type: NAME, option: value}")
    return component


@dataclass
class AdapterBlock:
    """The block ``adapter``: which weights are trained."""

    kind: Literal["lora", "full", "frozen"] = "lora"  # what is trained: full = every weight; frozen = only the head
    r: int = 32  # LoRA rank: more capacity, larger adapter
    alpha: int = 32  # LoRA scale is alpha / r
    dropout: float = 0.0  # on the LoRA input
    targets: str | list[str] = "auto"  # auto = all linear layers of the blocks; or names; or a regex
    layers: list[int] | None = None  # blocks with LoRA (1 = first); null = all; few upper ones train faster
    vision: bool = False  # also adapt the vision tower


@dataclass
class DataBlock:
    """The block ``data``: what is trained and tested on."""

    path: str = ""  # pydocs, a local folder or file, or a Hub dataset
    format: Component = field(default_factory=lambda: Component("auto"))  # auto, a format of docs/data.md, or your own
    revision: str | None = None  # of a Hub dataset: branch, tag or commit; pin it, or the metrics may change
    subset: str | None = None  # Hub configuration name
    split: str = "train"  # the split to train on
    query: str = "query"  # rows: column of the query text
    document: str | None = None  # rows: column of the document's text; null = positive / document / text, if there
    image: str | None = None  # rows: column of the document's image; null = image, if there; "" = none
    id: str | None = None  # rows: column that names the document (image_filename ...); null = hash of the content
    scores: str | None = None  # rows: column of a teacher's scores of the documents; null = scores, if there; "" = none
    label: str | None = None  # rows: column of labels, 0 = a negative; null = label, score ..., if there; "" = none
    negatives: int = 0  # hard negatives per query; the data must have them
    near_duplicates: Literal["keep", "together"] = "keep"  # together: texts of mostly the same words are one document
    allow_outside: bool = False  # also read image and text files that lie outside of the data's folder
    streaming: bool = False  # rows: read while training, with no copy on disk; see docs/data.md for what it cannot do
    shuffle_buffer: int = 10_000  # streaming: rows that are read and shuffled together; memory of a data worker
    limit: int | None = None  # train on the first pairs only; the last query of a collection keeps all of its pairs
    dev: float | int = 0.05  # share (below 1) or number of queries to hold out for dev; whole files stay together
    test: float | int = 0.05  # the same for test; ignored where the data has a test split
    test_documents: int | None = None  # most documents to rank; relevant ones always stay
    dev_documents: int | None = None  # the same for the dev split: it is ranked during training, so keep it small
    query_tokens: int | None = None  # longest query in training; null = model.query_tokens
    document_tokens: int | None = None  # longest document in training: short is fast; null = model.document_tokens
    length_groups: int = 4  # encode the documents of a batch in this many groups by length: less padding
    length_window: int = 1  # sort this many batches by length together: less padding, and negatives of similar length
    source: str | None = None  # one source a batch: file, or (rows) the column that names it; null = mixed
    source_temperature: float = 1.0  # 1 = every pair once an epoch; above 1, small sources are drawn more often
    source_weights: dict[str, float] = field(default_factory=dict)  # source -> how often it is drawn; default 1

    def __post_init__(self) -> None:
        """Let Python programs write the format as recipes do: ``DataBlock(format="beir")``; expand ``~``."""
        self.format = _component("data.format", self.format)
        self.path = expand_home(self.path)


@dataclass
class MiningBlock:
    """The block ``mining``: hard negatives that are mined during training."""

    rounds: int = 0  # times that hard negatives are mined again during training, at equal distances; 0 = never
    start: bool = False  # also mine before the first step; the data then need no negatives
    k: int = 8  # most negatives a query gets; data.negatives of them are drawn for a batch
    mode: Literal["pooled", "late", "hybrid"] = "hybrid"  # the score that ranks candidates
    max_relative: float | None = 0.95  # a negative scores below this share of the positive's score; null = no limit
    margin: float | None = None  # a negative scores below the positive by more than this; null = no limit
    first: int = 0  # first rank that is considered, 0 = the best
    last: int = 100  # ranks before this one are considered
    skip_top: int = 0  # leave out this many of the hardest that pass the thresholds
    window: int | None = None  # exclude pages at most this far from a positive in its file; null = exclude none
    sampling: Literal["top", "random"] = "top"  # top: the hardest that pass; random: drawn among them
    miner: Component | None = None  # finds the negatives instead: package.module:function (docs/mining.md)
    reranker: Component | None = None  # judges candidates for max_relative and margin: package.module:function


@dataclass
class TermBlock:
    """Weight and temperature of a loss term."""

    weight: float = 1.0  # w of the term in the loss; 0 turns it off
    temperature: float = 0.05  # tau; scores are cosines, so 0.02 to 0.05 is usual


@dataclass
class SelfDistillationBlock:
    """The block ``objective.self_distillation``: the encoder's own scores together teach single views."""

    weight: float = 0.0  # w of the term in the loss; 0 turns it off
    temperature: float = 0.05  # tau of the students' softmax
    teacher_temperature: float | None = None  # tau of the teacher's softmax; null = temperature
    preset: Literal["bge_m3"] | None = None  # weights and students of BGE-M3; null = late alone teaches pooled
    pooled: float | None = None  # weight of the pooled score in the teacher; null = the preset's
    late: float | None = None  # weight of the late score in the teacher; null = the preset's
    teacher: float | None = None  # weight of scores that the data has, such as BM25's, in the teacher; null = 0
    students: list[Literal["pooled", "late", "hybrid"]] | None = None  # the scores that learn; null = the preset's


@dataclass
class TeacherBlock:
    """The block ``objective.teacher``: distillation from another model's scores."""

    weight: float = 0.0  # of learning another model's scores, which the data must have; 0 turns it off
    temperature: float = 0.05  # tau of the student's softmax (kl), or the unit of the scores (margin_mse)
    kind: Literal["kl", "margin_mse"] = "kl"  # kl = its distribution; margin_mse = its differences to the positive
    scale: float = 1.0  # the teacher's scores are multiplied by it: brings another unit to that of cosines
    score: Literal["pooled", "late", "hybrid", "each"] = "hybrid"  # which score learns; each = pooled, and late
    teacher_temperature: float | None = None  # tau of the teacher's softmax (kl); null = temperature
    normalise: Literal["none", "minmax", "zscore"] = "none"  # of the teacher's scores of each query, to one unit


@dataclass
class ReductionBlock:
    """The block ``objective.reduction``: how the loss reduces a query token's similarities over a document's tokens."""

    kind: Literal["max", "soft", "topk"] = "max"  # max = MaxSim, as search scores; soft and topk: training alone
    temperature: float = 0.05  # soft: tau of tau log mean exp(similarity / tau), in cosines
    k: int = 2  # topk: the mean of the k best


@dataclass
class CompressionBlock:
    """The block ``objective.compression``: document tokens as an index will have them, so that training fits them."""

    factors: list[int] = field(default_factory=list)  # that many tokens become one, drawn each step; [] = none do
    method: Literal["hierarchical", "kmeans"] = "hierarchical"  # hierarchical: Ward, on the CPU; kmeans: on the GPU
    bits: list[int] = field(default_factory=list)  # 4, 8 or 32 bits a number, drawn each step; [] = as they are


@dataclass
class ObjectiveBlock:
    """The block ``objective``: the loss."""

    pooled: TermBlock = field(default_factory=TermBlock)  # cross entropy of the pooled scores
    late: TermBlock = field(default_factory=TermBlock)  # cross entropy of the late scores
    hybrid: TermBlock = field(default_factory=lambda: TermBlock(weight=0.0))  # the two scores added before the softmax
    batch: int | None = None  # pairs per step over all GPUs, by gradient caching; null = per_device_train_batch_size
    chunk_rows: int | None = None  # most rows of one forward; with batch memory follows it; null = no limit, or 32
    chunk_tokens: int | None = None  # most tokens of one forward, padding included (rows x longest); null = no limit
    gather: bool = True  # documents of all GPUs are negatives; false = of the own one only
    gather_group: int | None = None  # gather among this many neighbouring GPUs only, for large worlds; null = all
    similarity: Literal["auto", "float32", "bfloat16"] = "auto"  # of tokens; auto: as the GPU trains
    neighbour_pages: int | None = None  # pages this near to an answer in its file are no negatives; null = they are
    loss: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: every pair is judged by itself (SigLIP)
    sigmoid_bias: float = -10.0  # sigmoid: added to score / temperature; most pairs are negatives
    symmetric: bool = False  # mean of both directions: document among documents, and query among queries
    hardness: float = 0.0  # alpha: a negative counts exp(alpha x its score) times (LLaVE); 0 = all alike
    false_negatives: float | None = None  # leave out negatives above this share of the positive's score; 0.95 is usual
    margin: float = 0.0  # taken from the positive's score, in cosines (additive margin)
    graded: bool = False  # known positives in the batch share the target by their grade, instead of being left out
    self_distillation: SelfDistillationBlock = field(default_factory=SelfDistillationBlock)  # own scores teach views
    teacher: TeacherBlock = field(default_factory=TeacherBlock)  # another model's scores, where the data has them
    reduction: ReductionBlock = field(default_factory=ReductionBlock)  # maximum over document tokens, or a softer one
    compression: CompressionBlock = field(default_factory=CompressionBlock)  # fewer and coarser document tokens
    diversity: float = 0.0  # weight of the mean squared cosine between tokens of one row
    overlap: float = 0.0  # weight of the mean squared cosine between a row's pooled vector and its tokens
    terms: list[Component] = field(default_factory=list)  # more terms, your own too: see docs/objective.md
    skip_nonfinite: int = 0  # steps with a loss or gradient that is no finite number to leave out; 0 = stop at once
    schedule: dict[str, list[list[float]]] = field(default_factory=dict)  # weight -> points [share of training, value]


@dataclass
class EvaluationBlock:
    """The block ``evaluation``: what is measured, and when."""

    during: bool = True  # evaluate the dev split at every training.eval_steps
    patience: int | None = None  # early stopping: evaluations without a new best until training ends; null = never
    before: bool = True  # evaluate the test split with the untouched base: the table's first row
    after: bool = True  # evaluate the test split with the trained encoder, reloaded from its folder
    k: list[int] = field(default_factory=lambda: [1, 5, 10])  # cut-offs of nDCG, recall and MRR
    calibrate: bool = True  # fit the hybrid's late weight and constants on the dev split; stored with the adapter
    calibration_queries: int = 1000  # most dev queries that are used for it; of more, a fixed sample
    calibration_documents: int = 10_000  # most dev documents; relevant ones stay; their token vectors are in memory
    batch_size: int = 32  # rows encoded at once; changes speed and memory, not scores
    bootstrap: int = 1000  # resamples for the 95 % confidence intervals
    seed: int = 0  # of the bootstrap


@dataclass
class PublishBlock:
    """The block ``publish``: the repository on the Hub."""

    repo: str | None = None  # owner/name on the Hub, to publish to when the run ends; null = do not publish
    private: bool = True  # create the repository as a private one, and refuse one that is public
    license: str | None = None  # licence of the adapter for the card, such as apache-2.0; null = not stated


@dataclass
class Recipe:
    """A training run: all blocks of a recipe file."""

    name: str = "run"  # name of the run, for its folder and its trackers
    output: str | None = None  # folder of the run; null = runs/NAME
    model: ModelBlock = field(default_factory=ModelBlock)  # the embedder, and how it reads text and images
    late: LateBlock = field(default_factory=LateBlock)  # token vectors: hidden states, head, filters, hybrid weights
    adapter: AdapterBlock = field(default_factory=AdapterBlock)  # what is trained
    data: DataBlock = field(default_factory=DataBlock)  # the data to train and test on
    mining: MiningBlock = field(default_factory=MiningBlock)  # hard negatives, mined with the model during training
    objective: ObjectiveBlock = field(default_factory=ObjectiveBlock)  # the terms of the loss
    training: dict[str, Any] = field(default_factory=dict)  # transformers TrainingArguments + head_learning_rate
    evaluation: EvaluationBlock = field(default_factory=EvaluationBlock)  # what is measured, and when
    publish: PublishBlock = field(default_factory=PublishBlock)  # where the adapter is published

    def __post_init__(self) -> None:
        self.where = Where()  # no field: a recipe's place is no part of its content
        self.output = None if self.output is None else expand_home(self.output)
