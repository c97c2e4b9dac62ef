"""Model a recipe's memory without loading weights: encoder shapes, longest rows, one rank's share of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from smart_train.config.schema import Recipe
from smart_train.losses.joint import Joint
from smart_train.models.base_config import BaseConfig, BaseFiles
from smart_train.planning import estimates
from smart_train.planning.blueprint import Blueprint
from smart_train.planning.estimates import Engine, Precision, Rows, Tower, Weights
from smart_train.training.batch_size import chunk_rows

CHAT = 24  # tokens that a chat template puts around a row, about
DEFAULT = 512  # tokens, where neither recipe nor base has a limit
LETTERS = 4  # of a token of a prompt, about


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest rows; patches of the largest image, 0 where documents are text."""

    query: int
    document: int
    patches: int = 0


class MemoryModel:
    """The memory of a recipe on any number of ranks.

    on_cpu: it trains on a CPU; images: documents are page images
    Raises what ``Blueprint`` raises.
    """

    def __init__(self, recipe: Recipe, base: BaseConfig, images: bool, on_cpu: bool) -> None:
        self.recipe, self.base, self.images, self.on_cpu = recipe, base, images, on_cpu
        self.files = BaseFiles.of(recipe.model.base, recipe.model.revision)
        self.blueprint = Blueprint(recipe.model, recipe.late, recipe.adapter)
        self.weights: Weights = self.blueprint.weights()
        self.towers: dict[str, Tower] = self.blueprint.towers()
        if "vision" in self.towers and self.towers["vision"].first < self.towers["vision"].layers:
            self.towers["text"] = replace(self.towers["text"], first=0)  # gradients go through it to the other
        if recipe.model.dropout == 0:
            self.towers = {name: replace(tower, dropouts=0) for name, tower in self.towers.items()}

    def changed(self, recipe: Recipe) -> MemoryModel:
        """Return the model of another recipe with the same base and adapter."""
        other: MemoryModel = object.__new__(MemoryModel)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("lengths", "joint")}, recipe=recipe)
        return other

    @cached_property
    def joint(self) -> Joint:
        """Return the recipe's loss, which declares what it reads."""
        return Joint.from_recipe(self.recipe.objective)

    @property
    def half(self) -> bool:
        return bool(self.recipe.training.get("bf16") or self.recipe.training.get("fp16"))

    @property
    def cached(self) -> bool:
        return self.recipe.objective.batch is not None and self.recipe.adapter.kind != "frozen"

    @property
    def checkpointing(self) -> bool:
        return bool(self.recipe.training.get("activation_checkpointing"))

    # -- rows

    @cached_property
    def lengths(self) -> Lengths:
        model, data = self.recipe.model, self.recipe.data
        query = self._text("query", model.query_tokens, data.query_tokens)
        if not (self.images and "vision" in self.towers):
            return Lengths(query, self._text("document", model.document_tokens, data.document_tokens))
        patches, merged = self._image()
        return Lengths(query, merged + self._around("document"), patches)

    def _text(self, role: str, model: int | None, data: int | None) -> int:
        own = (self.files.transformer_json("sentence_bert_config.json") or {}).get("max_seq_length")
        tokenizer = (self.files.transformer_json("tokenizer_config.json") or {}).get("model_max_length")
        # The recipe's model limit replaces the base's own, but for its positions; the data limit only lowers it.
        reads = [model, self.base.positions] if model is not None else [own, tokenizer, self.base.positions]
        known = [n for n in (*reads, data) if isinstance(n, int) and 0 < n < 1 << 24]
        longest = min(known, default=DEFAULT)
        return longest + (self._around(role) if self._chat else 0)

    @cached_property
    def _chat(self) -> bool:
        tokenizer = self.files.transformer_json("tokenizer_config.json") or {}
        settings = self.files.transformer_json("sentence_bert_config.json") or {}
        return "message" in settings.get("modality_config", {}) or ("chat_template" in tokenizer and self.base.vision)

    def _around(self, role: str) -> int:
        """Return the tokens of prompt and template, which come on top of the text's limit."""
        stored = (self.files.json("config_sentence_transformers.json") or {}).get("prompts") or {}
        own = getattr(self.recipe.model, f"{role}_prompt")
        prompt = own if own is not None else stored.get(role) or ""
        return CHAT * self._chat + len(prompt) // LETTERS

    def _image(self) -> tuple[int, int]:
        """Return (patches, tokens) of the largest image."""
        vision = self.blueprint.config.vision_config
        patch = int(getattr(vision, "patch_size", 14))
        merge = int(getattr(vision, "spatial_merge_size", 1))
        pixels = self.recipe.model.max_pixels or self._own_pixels() or int(getattr(vision, "image_size", 448)) ** 2
        patches = pixels // patch**2
        return patches, patches // merge**2

    def _patch_numbers(self) -> int:
        vision = self.blueprint.config.vision_config
        channels, frames = getattr(vision, "in_channels", 3), getattr(vision, "temporal_patch_size", 1)
        return int(channels * frames * getattr(vision, "patch_size", 14) ** 2)

    def _own_pixels(self) -> int | None:
        whole = self.files.transformer_json("processor_config.json") or {}
        images = whole.get("image_processor") or self.files.transformer_json("preprocessor_config.json") or {}
        size = images.get("size")
        found = size.get("longest_edge") if isinstance(size, dict) else None
        return images.get("max_pixels") or found

    def pairs(self, ranks: int) -> int:
        """Return the pairs of one rank, rounded up if ``objective.batch`` cannot be shared evenly."""
        batch = self.recipe.objective.batch
        return -(-batch // ranks) if batch else int(self.recipe.training.get("per_device_train_batch_size", 8))

    def rows(self, ranks: int) -> Rows:
        objective, pairs = self.recipe.objective, self.pairs(ranks)
        views = self.joint.views
        group = (objective.gather_group or ranks) if objective.gather else 1
        similar = objective.similarity
        rounded = similar == "bfloat16" or (similar == "auto" and self.half and not self.on_cpu)
        return Rows(
            pairs=pairs,
            queries=pairs,
            documents=pairs * (1 + self.recipe.data.negatives),
            query_tokens=self.lengths.query,
            document_tokens=self.lengths.document,
            pooled=self.base.pooled,
            width=self.recipe.late.dim or self.base.hidden,
            token_size=2 if rounded else 4,
            group=min(group, ranks),
            uses_pooled="pooled" in views,
            uses_tokens="tokens" in views,
        )

    # -- chunks

    def inputs(self, rows: Rows) -> list[tuple[int, int, int]]:
        """Return (rows, tokens of one, patches of one) of queries and of documents."""
        lengths = self.lengths
        return [(rows.queries, lengths.query, 0), (rows.documents, lengths.document, lengths.patches)]

    def chunk(self, length: int, patches: int = 0) -> int:
        """Return the most rows of one forward; many without a limit."""
        most, budget = chunk_rows(self.recipe.objective), self.recipe.objective.chunk_tokens
        limits = [n for n in (most, max(1, budget // length) if budget else None) if n]
        return min(limits, default=1 << 30)

    # -- bytes

    @property
    def stored_half(self) -> bool:
        """Return whether some weight is held in half precision."""
        weights = self.weights
        return weights.frozen_bytes + weights.trained_bytes < estimates.FLOAT * weights.all

    def precision(self, engine: Engine) -> Precision:
        """Return the sizes of numbers.

        Autocast casts the inputs of linear layers whose weights, or LoRA's, are float32; DeepSpeed holds everything in
        half precision instead.
        """
        weights = self.weights
        count, held = (weights.frozen, weights.frozen_bytes) if weights.frozen else (weights.trained, 0)
        size = 2 if held and held < 3 * count else weights.trained_bytes // count if not held else estimates.FLOAT
        state = 2 if engine.kind == "zero" and self.half else size
        compute = 2 if self.half else state
        lora = self.recipe.adapter.kind == "lora" and (self.half or size != estimates.FLOAT)
        casting = engine.kind != "zero" and (lora or (self.half and size == estimates.FLOAT))
        inputs = estimates.FLOAT if lora and not self.half else 0
        matrix = self.recipe.model.attention == "eager" or (self.on_cpu and self.towers["text"].dropouts > 0)
        return Precision(state, compute, casting, inputs, compute if self.on_cpu else 1, matrix)

    def activations(self, engine: Engine, ranks: int) -> tuple[int, int]:
        """Return (bytes kept at once, bytes of the widest moment besides): of the largest chunk with gradient caching,
        else of all queries and documents."""
        inputs = self.inputs(self.rows(ranks))
        chunks = [self._side(engine, min(count, self.chunk(*one)), *one) for count, *one in inputs]
        widest = max(besides for _, besides in chunks)
        if self.cached:
            return max(kept for kept, _ in chunks) + self._casts(engine), widest
        return sum(self._side(engine, *side)[0] for side in inputs) + self._casts(engine), widest

    def _side(self, engine: Engine, rows: int, length: int, patches: int) -> tuple[int, int]:
        """Return (kept, besides) of rows of one length, each with an image of this many patches."""
        precision, late, trains = self.precision(engine), self.recipe.late, self.recipe.adapter.kind != "frozen"
        width = late.dim or self.base.hidden
        mixed = len(late.layer) if isinstance(late.layer, list) else 1
        kept = estimates.readout(self.base.hidden, width, late.head.type, precision, rows * length, trains, mixed)
        if patches and self.towers["vision"].full:  # the first layer's input
            kept += rows * patches * self._patch_numbers() * precision.compute
        widest = 0
        for name, one in (("text", length), ("vision", patches)):
            if one:
                tower = self.towers[name]
                again = trains and self.checkpointing
                kept += estimates.saved(tower, precision, rows * one, one, again) if trains else 0
                widest = max(widest, estimates.transient(tower, precision, rows * one, one, again))
        return kept, widest

    def _casts(self, engine: Engine) -> int:
        """Return the bytes of autocast's copies of float32 weights; with checkpointing, of one block."""
        precision, weights = self.precision(engine), self.weights
        if (
            not self.half
            or not precision.casting
            or precision.state != estimates.FLOAT
            or self.recipe.adapter.kind == "frozen"
        ):
            return 0
        return 2 * (weights.block if self.checkpointing else weights.all - weights.outside)
