"""SmartEncoder: a pooled vector and token vectors from one forward of any sentence-transformers model.

An encoder is composed of a SentenceTransformer, a TokenFilter and a LateHead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from smart_train.config.recipe import plain
from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.config.typed_values import make_block
from smart_train.core import hub
from smart_train.core.embeddings import Embeddings, Features, Tokens
from smart_train.core.errors import AdapterError, BaseNotFound, Setting, SettingError, UsageError
from smart_train.core.modality import content_size
from smart_train.core.registry import Registry
from smart_train.losses.compression import Method, check_pooling, pooled_tokens
from smart_train.losses.similarity import scores
from smart_train.models import saving
from smart_train.models.base_config import (
    CHOOSE,
    BaseFiles,
    check_no_adapter,
    check_one_stack,
    is_language_model,
    language_model_advice,
    named_by_peft,
    readable,
)
from smart_train.models.base_loading import load_base
from smart_train.models.heads import LateHead
from smart_train.models.hidden_states import find_blocks, find_final_norm, resolve_layers, set_dropout, text_config
from smart_train.models.lora import add_lora
from smart_train.models.pooling import pooling_of, set_pooling
from smart_train.models.preprocessing import (
    Contents,
    Role,
    as_rows,
    by_modality,
    check_contents,
    check_patches,
    features_of,
    limit_to_positions,
    prompt_of,
    reading_limit,
    set_pixel_budget,
)
from smart_train.models.safe_loading import SETTINGS, nonfinite
from smart_train.models.token_filters import TokenFilter

logger = logging.getLogger(__name__)

# Publishing stands above models and is named here, so that an encoder can be published without importing it.
PUBLISHERS = Registry(
    "publisher", "smart_train.publishers", {"hub": "smart_train.publishing.publisher:publish_encoder"}
)

PADDED, PADDED_HALF = 1e-3, 5e-2  # largest change of a vector of length 1 by padding, in float32 and in half precision


class SmartEncoder(nn.Module):
    """Encode queries and documents into pooled vectors and token vectors, from one forward of a backbone.

    base: Hub id, local folder or package:NAME/FOLDER
    model, late, adapter: the recipe's blocks, or dicts of their keys; None = defaults, and no adapter = the plain base.
        ``SmartEncoder("any sentence-transformers model")`` gives late and hybrid scores at once, without training
    lora: keys of a LoRA adapter, such as {"r": 32}; short for ``adapter={"kind": "lora", "r": 32}``
    device: where the model is put; None = the best there is
    ``place`` and ``commit`` say where the base was loaded from: a folder and None, or a Hub id and its commit.
    Raises BaseNotFound where the base cannot be loaded or gives no token states, ExtensionError where a head or token
    filter cannot be made, and SettingError where the base lacks a layer or its final norm cannot be found.

        encoder = SmartEncoder("sentence-transformers/all-MiniLM-L6-v2", late={"layer": 4})
        documents = encoder.encode_documents(["a passage", "another passage"])
        encoder.score(["a question"], documents, mode="late")   # [1, 2]
    """

    def __init__(
        self,
        base: str,
        *,
        model: ModelBlock | Mapping[str, Any] | None = None,
        late: LateBlock | Mapping[str, Any] | None = None,
        adapter: AdapterBlock | Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if lora is not None and adapter is not None:
            raise UsageError("lora and adapter are both given; give one of them")
        if lora is not None:
            adapter = {"kind": "lora", **lora}
        self.settings = replace(make_block(ModelBlock, model, "model"), base=base)
        self.late = make_block(LateBlock, late, "late")
        self.adapter = None if adapter is None else make_block(AdapterBlock, adapter, "adapter")
        self.place, self.commit = hub.locate(base, self.settings.revision)
        with hub.hub_errors(base, self.settings.revision):
            files = BaseFiles(self.place, self.commit)
            check_no_adapter(files, trains=self.adapter is not None)
            if self.adapter is not None and self.adapter.kind == "lora":
                named_by_peft(files, base)
            if self.late.layer not in (-1, [-1]):
                self._check_layers(files)
        self.st = load_base(self.settings, self.place, self.commit, device)
        wrong = nonfinite(self.st.named_parameters())
        if wrong:
            fix = (
                "download it again, or where its numbers are too large for that, ",
                Setting("model.dtype", "float32"),
            )
            raise BaseNotFound(f"{base}: {wrong}", fix)
        if not hasattr(self.transformer, "modality_config"):
            kind = type(self.transformer).__name__
            raise BaseNotFound(f"{base}: its first module is {kind}, not a transformer", CHOOSE)
        if self.transformer.module_output_name != "token_embeddings":
            given = self.transformer.module_output_name
            raise BaseNotFound(f"{base} gives no token states (only {given})", CHOOSE)
        if hasattr(self.backbone, "decoder"):
            check_one_stack(self.backbone.config, base)
        # Rows of a flattened batch can't be told apart by a mask; chunks of like length save the same padding.
        self.transformer.unpad_inputs = False
        limit_to_positions(self.st, self.settings, self.backbone)
        check_patches(self.transformer.processor, self.backbone.config, base)
        set_pixel_budget(self.transformer.processor, self.settings)
        if self.settings.dropout is not None:
            set_dropout(self.backbone, self.settings.dropout)
        if self.settings.pooling is not None:
            set_pooling(self.st, self.settings.pooling)
        self._use_cosine()
        self.pooling = pooling_of(self.st)
        logger.info("%s: %s pooling (%s)", base, self.pooling or "no", self._pooling_source())
        if self.settings.pooling is None and is_language_model(
            BaseFiles(self.place, self.commit), self.backbone.config
        ):
            logger.warning(language_model_advice(base))
        self.layers = [-1] if self.late.layer in (-1, [-1]) else self._resolve_layers()
        self.final_norm = self.norm_for(self.layers)
        self.keep = TokenFilter(self.tokenizer, self.backbone.config, self.pooling, self.late.token_filters)
        self.head = LateHead(self.late, self.layers, self.hidden_size).to(self.device)
        self.cut_rows: dict[Role, int] = {"query": 0, "document": 0}  # rows at their length limit, counted
        if "image" in self.st.modalities:
            with readable(base):  # a processor's settings are looked at by the first picture
                self.preprocess([Image.new("RGB", (64, 64))], "document")
        self._check_padding()
        if self.adapter is not None:
            self._adapt(self.adapter)
        self.eval()  # as from_pretrained everywhere; encode() returns to this mode, a trainer switches dropout on

    # -- its parts

    @property
    def transformer(self) -> Any:
        """Return the sentence-transformers module around the backbone."""
        return self.st[0]

    @property
    def backbone(self) -> Any:
        """Return the transformers model."""
        return self.transformer.model

    @property
    def tokenizer(self) -> Any:
        return self.st.tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.st.parameters()).device

    @property
    def config(self) -> Any:  # transformers.Trainer and DeepSpeed ask a model for the backbone's
        return self.backbone.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Return the classes of the blocks, for FSDP, which refuses a class that no module has."""
        there = {type(module).__name__ for module in self.backbone.modules()}
        return [name for name in getattr(self.backbone, "_no_split_modules", None) or [] if name in there]

    @property
    def hidden_size(self) -> int:
        """H: width of the hidden states."""
        return int(text_config(self.backbone.config).hidden_size)

    @property
    def pooled_width(self) -> int:
        """D: width of the pooled vectors."""
        return int(self.st.get_embedding_dimension() or self.hidden_size)

    @property
    def token_width(self) -> int:
        """d: width of the token vectors."""
        return self.late.dim or self.hidden_size

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Turn on activation checkpointing, as transformers.Trainer does for ``training.activation_checkpointing``."""
        self.backbone.activation_checkpointing_enable(**options)

    def _pooling_source(self) -> str:
        if self.settings.pooling is not None:
            return "model.pooling"
        named = BaseFiles(self.place, self.commit).modules()
        return "the base's own" if named else "sentence-transformers' default: the base has no modules.json"

    def _use_cosine(self) -> None:
        """Replace the base's own similarity and width, and log it: pooled vectors are whole and compared by cosine.

        A saved folder says the same, so that plain sentence-transformers ranks as this encoder does.
        """
        base, st = self.settings.base, self.st
        if st.similarity_fn_name != "cosine":
            what = "%s: pooled vectors are compared by cosine, in place of the base's similarity_fn_name %s"
            logger.info(what, base, st.similarity_fn_name)
            st.similarity_fn_name = "cosine"
        if st.truncate_dim is not None:
            what = "%s: pooled vectors keep all their numbers, in place of the base's truncate_dim %d (pooled_dim cuts)"
            logger.info(what, base, st.truncate_dim)
            st.truncate_dim = None

    def _check_layers(self, files: BaseFiles) -> None:
        """Raise SettingError for a layer that the base lacks by its configuration, before its weights are loaded."""
        with readable(self.settings.base):
            config = files.config(self.settings.base, self.settings.trust_remote_code).get_text_config()
            count = getattr(config, "num_hidden_layers", None)
        if isinstance(count, int):
            resolve_layers(self.late.layer, count)

    def _resolve_layers(self) -> list[int]:
        return resolve_layers(self.late.layer, len(find_blocks(self.backbone)[1]))

    def norm_for(self, layers: list[int]) -> list[nn.Module]:
        """Return the norm that these layers go through, in a list so that it is not registered twice; or []."""
        if self.late.norm == "none" or all(layer == -1 for layer in layers):
            return []
        norm, base = find_final_norm(self.backbone, self._probe), self.settings.base
        if norm is None and self.late.norm == "final":
            what = f"is final, but {base} has no final norm (it is a post-norm model)"
            raise SettingError("late.norm", what, "write auto or none")
        return [norm] if norm is not None else []

    def _probe(self) -> Tensor:
        features = {k: v.to(self.device) for k, v in self.tokenizer("a probe", return_tensors="pt").items()}
        self.backbone.eval()
        states: Tensor = self.backbone(**features).last_hidden_state
        return states

    @torch.no_grad()
    def _check_padding(self) -> None:
        """Raise BaseNotFound where a text's pooled vector depends on the texts beside it in a batch: the base's files
        then disagree with each other, such as a tokenizer that pads on the side where the positions begin."""
        self.eval()
        short, long = "a", "a longer text, so that the first one is padded beside it"
        pooled = []
        for rows in ([short], [short, long]):
            with readable(self.settings.base):  # the first texts that its tokenizer gets here
                features = self.preprocess(rows, "document")
            out = self.st({k: v.to(self.device) for k, v in features.items() if isinstance(v, Tensor)})
            pooled.append(F.normalize(out["sentence_embedding"][0].float(), dim=-1))
        difference = float((pooled[0] - pooled[1]).norm())
        exact = self.backbone.dtype == torch.float32 and self.settings.quantisation == "none"
        if not difference <= (PADDED if exact else PADDED_HALF):
            raise BaseNotFound(
                f"{self.settings.base}: the vector of a text changes by {difference:.2g} with the texts beside it in a "
                f"batch; its tokenizer pads on the {self.tokenizer.padding_side}, its pooling is {self.pooling}",
                "correct padding_side in its tokenizer_config.json (encoders pad on the right), or its pooling",
            )

    def reading_limit(self, role: Role) -> int | None:
        """Return the longest text of this role in tokens; longer ones are cut.  None = no limit."""
        return reading_limit(self.st, self.settings, role)

    def _adapt(self, adapter: AdapterBlock) -> None:
        if adapter.kind == "lora":
            self.st.requires_grad_(False)  # modules behind the backbone too, such as Dense
            named = named_by_peft(BaseFiles(self.place, self.commit), self.settings.base)
            add_lora(self.backbone, adapter, named, self.commit)
            return
        self.st.requires_grad_(adapter.kind == "full")
        pooler = getattr(self.backbone, "pooler", None)
        if adapter.kind == "full" and isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)  # BERT's [CLS] pooler feeds neither view; it could never get a gradient

    # -- preprocessing, in data workers

    def prompt(self, role: Role) -> str | None:
        """Return the recipe's prompt for this role, else the base's own, chosen as sentence-transformers does."""
        return prompt_of(self.st, self.settings, role)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by role, "" for none; as sentence-transformers' ``prompts``."""
        return {"query": self.prompt("query") or "", "document": self.prompt("document") or ""}

    def preprocess(self, contents: Contents, role: Role, limit: int | None = None) -> Features:
        """Tokenize rows and prepare their images, on the CPU.

        contents: text, PIL image, pathlib.Path of an image, or {"text": ..., "image": ...}
        limit: longest text in tokens, if it is below ``reading_limit``; None = that
        """
        return features_of(self.st, self.settings, contents, role, self.prompt(role), limit)

    # -- the one forward

    def forward(self, chunks: Features | Sequence[Features]) -> Embeddings:
        """Encode the features of some rows, or a list of such chunks; rows stay in order, on the model's device."""
        if isinstance(chunks, dict):
            return self._forward(chunks)
        return Embeddings.cat(self._forward(chunk) for chunk in chunks)

    def _forward(self, features: Features) -> Embeddings:
        features = dict(features)  # the modules write into it
        role: Role = features.pop("role", "document")
        self.cut_rows[role] += features.pop("cut", 0)
        ids, mask = features["input_ids"], features["attention_mask"]
        with self._recording(features):
            out = self.st(features)
        pooled = out["sentence_embedding"]
        states = [self._state(layer, out) for layer in self.layers]
        tokens = self._tokens(states, self.keep(ids, mask), mask, pooled)
        return Embeddings(F.normalize(pooled.float(), dim=-1), tokens)

    @contextmanager
    def _recording(self, features: Features) -> Iterator[None]:
        """Has the backbone keep the wanted layers, and only those, and sentence-transformers hand them on."""
        wanted = [layer for layer in self.layers if layer != -1]
        config = self.backbone.config
        before = config.output_hidden_states
        if wanted:
            features["output_hidden_states"] = wanted
            config.output_hidden_states = True
        try:
            yield
        finally:
            config.output_hidden_states = before

    def _state(self, layer: int, out: dict[str, Any]) -> Tensor:
        if layer == -1:
            last: Tensor = out["token_embeddings"]
            return last
        state: Tensor = out["all_layer_embeddings"][layer]
        return self.final_norm[0](state) if self.final_norm else state

    def _tokens(self, states: list[Tensor], kept: Tensor, mask: Tensor, pooled: Tensor) -> Tokens:
        """The kept tokens of every row; a row that keeps none gets its pooled vector as the only one."""
        lengths = kept.sum(1)
        values = self.head([state[kept] for state in states])
        empty = lengths == 0
        if bool(empty.any()):
            stand_in = self._stand_in(states, mask, pooled, empty)
            rows = list(values.split(lengths.tolist()))
            for at, row in enumerate(empty.nonzero().flatten().tolist()):
                rows[row] = stand_in[at : at + 1]
            values, lengths = torch.cat(rows), lengths.clamp(min=1)
        return Tokens(values, lengths)

    def _stand_in(self, states: list[Tensor], mask: Tensor, pooled: Tensor, empty: Tensor) -> Tensor:
        """[empty rows, d]: the pooled vector through the head, or, where its width is not the head's (a Dense module
        after the pooling), the mean of the row's states."""
        if pooled.shape[1] == self.hidden_size:
            return self.head([pooled[empty].to(states[0].dtype)] * len(states))
        weights = (mask[empty].float() / mask[empty].sum(1, keepdim=True)).unsqueeze(-1)
        return self.head([(state[empty] * weights.to(state.dtype)).sum(1) for state in states])

    # -- encoding many rows

    def encode_queries(self, contents: Any, **options: Any) -> Any:
        """Encode queries, with the query prompt and length; see ``encode``.

        >>> encoder.encode_queries("how do I join paths").pooled.shape  # doctest: +SKIP
        torch.Size([1, 384])
        """
        return self.encode(contents, "query", **options)

    def encode_documents(self, contents: Any, **options: Any) -> Any:
        """Encode documents, with the document prompt and length; see ``encode``.

        >>> encoder.encode_documents(["a passage", "another"]).tokens.width  # doctest: +SKIP
        384
        """
        return self.encode(contents, "document", **options)

    # sentence-transformers' names for the same
    encode_query = encode_queries
    encode_document = encode_documents

    def encode(
        self,
        contents: Any,
        role: Role,
        output: Literal["torch", "numpy"] = "torch",
        *,
        batch_size: int = 32,
        progress: Progress | bool | None = None,
        dtype: torch.dtype | None = None,
        pooled_dim: int | None = None,
        token_dim: int | None = None,
        pool_factor: int = 1,
        pool_method: Method = "hierarchical",
    ) -> Any:
        """Encode many rows, in their order; the vectors come on the CPU.

        contents: a list of rows, a tuple, a numpy array of strings, a column of a ``datasets.Dataset``, a pandas Series
            (by position, whatever its labels); or a single row. A row is a text, a PIL image, a pathlib.Path of an
            image, or {"text": ..., "image": ...}. A single row gives Embeddings of one row.
        output: "torch" gives Embeddings, "numpy" a pair (pooled [rows, D], list of one [tokens, d] array a row)
        batch_size: changes speed and memory, never a vector
        progress: True for a bar, or a wrapper of the iterable of batches
        dtype: how tokens are kept (float16 halves them; pooled vectors stay float32)
        pooled_dim, token_dim: Matryoshka cuts, normalised again
        pool_factor, pool_method: how many token vectors of a document become one, on average, after the cut, and how
            they are clustered (``smart_train.losses.compression.pooled_tokens``): a factor of 2 halves an index. Tokens
            of queries stay as they are, and nothing of it is saved with the encoder.
        Raises UsageError for a pool_factor below 1 and an unknown pool_method.

        >>> encoder.encode_documents(["a passage of eight tokens"], pool_factor=2).tokens.lengths  # doctest: +SKIP
        tensor([4])
        """
        check_pooling(pool_factor, pool_method)
        pooling = (pool_factor if role == "document" else 1, pool_method)
        embeddings = self._encode(as_rows(contents), role, batch_size, progress, dtype, pooled_dim, token_dim, pooling)
        if output == "numpy":
            return embeddings.pooled.numpy(), [np.asarray(row) for row in embeddings.tokens.rows()]
        return embeddings

    @torch.no_grad()
    def _encode(
        self,
        contents: Contents,
        role: Role,
        batch_size: int,
        progress: Progress | bool | None,
        dtype: torch.dtype | None,
        pooled_dim: int | None,
        token_dim: int | None,
        pooling: tuple[int, Method],
    ) -> Embeddings:
        check_contents(contents, self.st.modalities)
        # The longest first: what runs out of memory does so at once.
        order = sorted(range(len(contents)), key=lambda i: -content_size(contents[i]))
        starts: Iterable[int] = range(0, len(order), batch_size)
        if progress:
            starts = progress(starts) if callable(progress) else _bar(starts, f"{role} batches")
        training = self.training
        self.eval()
        # Mixed precision training puts autocast around forward, in the object; a reloaded encoder has none, and its
        # vectors are the ones that count: so none here either.
        wrapped = self.__dict__.pop("forward", None)
        parts: list[tuple[list[int], Embeddings]] = []
        try:
            for start in starts:
                for rows in by_modality(order[start : start + batch_size], contents):
                    features = self.preprocess([contents[i] for i in rows], role)
                    on_device = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in features.items()}
                    batch = self(on_device).cut(pooled_dim, token_dim)
                    tokens = pooled_tokens(batch.tokens, *pooling)
                    parts.append(
                        (rows, Embeddings(batch.pooled, tokens if dtype is None else tokens.to(dtype)).to("cpu"))
                    )
        finally:
            self.train(training)
            if wrapped is not None:
                self.__dict__["forward"] = wrapped
        if not parts:
            nothing = Tokens(torch.zeros(0, token_dim or self.token_width), torch.zeros(0, dtype=torch.int64))
            return Embeddings(torch.zeros(0, pooled_dim or self.pooled_width), nothing)
        placed = torch.tensor([row for rows, _ in parts for row in rows])
        return Embeddings.cat(e for _, e in parts).select(placed.argsort())

    def score(self, queries: Any, documents: Any, mode: str = "hybrid", **options: Any) -> Tensor:
        """Return [B, N] pooled, late or hybrid scores of contents or Embeddings; options go to ``encode``."""
        q = queries if isinstance(queries, Embeddings) else self.encode_queries(queries, **options)
        x = documents if isinstance(documents, Embeddings) else self.encode_documents(documents, **options)
        return scores(q, x, mode, self.late.hybrid)

    def similarity(self, queries: Any, documents: Any) -> Tensor:
        """Return [B, N] hybrid scores, as ``score`` does; sentence-transformers' name for it.

        >>> encoder.similarity("a question", ["a passage", "another"]).shape  # doctest: +SKIP
        torch.Size([1, 2])
        """
        return self.score(queries, documents)

    def __repr__(self) -> str:
        """Return the encoder in a few lines; ``print(encoder.st)`` shows every module.

        >>> SmartEncoder("sentence-transformers/all-MiniLM-L6-v2", lora={"r": 8})  # doctest: +SKIP
        SmartEncoder(
          base: sentence-transformers/all-MiniLM-L6-v2
          pooled: 384 dimensions, mean pooling
          tokens: 384 dimensions, layer -1, head none
          trains: 147,456 of 22,860,672 parameters (lora, r 8)
          on: cpu, torch.float32
        )
        """
        weights = [(p.numel(), p.requires_grad) for p in self.parameters()]
        trained, adapter = sum(size for size, trains in weights if trains), self.adapter
        how = "no adapter" if adapter is None else adapter.kind + (f", r {adapter.r}" if adapter.kind == "lora" else "")
        layer = self.late.layer if isinstance(self.late.layer, int) else f"mix of {self.late.layer}"
        trains = f"{trained:,} of" if adapter is not None or list(self.head.parameters()) else "none of"
        lines = {
            "base": self.settings.base,
            "pooled": f"{self.pooled_width} dimensions, {self.pooling or 'no'} pooling",
            "tokens": f"{self.token_width} dimensions, layer {layer}, head {self.late.head.type}",
            "trains": f"{trains} {sum(size for size, _ in weights):,} parameters ({how})",
            "on": f"{self.device}, {self.backbone.dtype}",
        }
        return "SmartEncoder(\n" + "".join(f"  {name}: {value}\n" for name, value in lines.items()) + ")"

    # -- folders

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> Path:
        """Save the encoder as a folder that ``from_pretrained`` loads; docs/architecture.md describes its files.

        state: gathered full tensors by parameter name, where the encoder in memory is sharded
        """
        return saving.save(self, Path(folder).expanduser(), state)

    def push_to_hub(self, repo_id: str, *, private: bool = True, license: str | None = None, **options: Any) -> str:
        """Save the encoder, compare it with what is reloaded, and upload it with a card; return the address.

        repo_id: owner/name, created if it is missing; private: the repository must not be public
        license: of the adapter, for the card
        options: ``dry_run``, ``branch``, ``tag``, ``message`` and ``export``, as ``smart_train.publish`` takes them.
            ``smart_train.publish("runs/mine", "me/mine")`` uploads a run's folder, with the metrics of the run.
        Raises PublishError where a file holds a path or a secret, or the Hub refuses it, and AdapterError where the
        encoder has no adapter, or is not the same when reloaded.

        >>> encoder.push_to_hub("me/mine", license="apache-2.0")  # doctest: +SKIP
        """
        publish = PUBLISHERS.resolve("hub")
        return str(publish(self, repo_id, private=private, license=license, **options))

    def save_settings(self, folder: str | Path) -> None:
        """Rewrite the ``late`` block of smart_train.json alone: the hybrid's weights and constants after a calibration.

        If anything else of it changed, verified.json is removed: the vectors are others.
        """
        saving.write_late_settings(Path(folder).expanduser(), plain(self.late))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        base: str | None = None,
        layer: int | None = None,
        trainable: bool = False,
        dtype: saving.Dtype | None = None,
        attention: str | None = None,
        quantisation: Literal["none", "4bit"] | None = None,
        trust_remote_code: bool = False,
        trust_extensions: Sequence[str] = (),
        checkpoint: bool = False,
    ) -> SmartEncoder:
        """Load the encoder of a folder (or Hub repository) that ``save_pretrained`` wrote.

        A plain sentence-transformers model gives a training-free encoder.

        revision: of a Hub repository
        base: where the base is now, if it has moved; its identity is checked all the same
        layer: reads another layer than the stored one, where no head was trained on that
        trainable: LoRA can be trained on
        dtype: as model.dtype
        attention, trust_remote_code: as in the model block, but never the stored ones: the one is the machine's choice,
            the other the caller's alone
        quantisation: as model.quantisation; None = as it was trained, which is the only one with the same vectors
        trust_extensions: heads and token filters of other packages that the folder may have imported, as it names them:
            ["my_package.module:MyHead"]
        checkpoint: the folder is of the run that reads it, with optimizer states in whatever form an engine wrote them
        Raises AdapterError, and loads nothing, where the base is another one (architecture, width, revision or
        weights), where a key is missing, left over or of another size, where every LoRA B is zero, where the folder
        holds code, a pickle or what points elsewhere (``check_folder``) or names a head or token filter that is not
        trusted, and where ``base`` is given and there is no adapter to put on it.
        """
        source = str(folder)
        saved = saving.open_saved(
            source,
            revision,
            layer=layer,
            trust_remote_code=trust_remote_code,
            trust_extensions=trust_extensions,
            checkpoint=checkpoint,
            moved=base,
        )
        machine: dict[str, Any] = {"attention": attention, "trust_remote_code": trust_remote_code}
        if saved is None:
            late = LateBlock() if layer is None else LateBlock(layer=layer)
            model = ModelBlock(revision=revision, dtype=dtype or "auto", quantisation=quantisation or "none", **machine)
            return cls(source, model=model, late=late, device=device)
        place = saved.base(base)
        block = saved.model_block(place, dtype, quantisation, **machine)
        try:
            encoder = cls(place, model=block, late=saved.late, device=device)
        except BaseNotFound as error:
            if saved.kind != "full":
                raise
            raise AdapterError(f"{error}; nothing was loaded") from None  # the folder is its own base
        except SettingError as error:
            if layer is not None or error.setting != "late.layer":
                raise
            raise AdapterError(f"{saved.folder / SETTINGS}: {error}; nothing was loaded") from None
        saving.restore(encoder, saved, trainable)
        return encoder


Progress = Callable[[Iterable[Any]], Iterable[Any]]


def _bar(batches: Iterable[int], what: str) -> Iterable[int]:
    from tqdm.auto import tqdm

    return tqdm(batches, desc=what, leave=False)
