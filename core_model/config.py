"""What is learnt and how: the tables [model], [task] and [training] of a federation's configuration.

The coordinator carries these as an opaque table inside the plan; participants and the ``model`` and ``data`` commands
read them with these classes. No deep-learning framework is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pydantic

MetricName = Annotated[str, pydantic.Field(pattern=r"^(evaluation/)?[A-Za-z0-9_.-]{1,40}$")]

# What retrieval reports of the sets that data sources usually hold out.
_RETRIEVAL = tuple(f"{name}_r_at_{k}" for name in ("missing", "unseen", "test") for k in (1, 10))

EntryPoint = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class _Table(pydantic.BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Table):
    """The model. Everything that fixes a tensor's shape stands here, so that no shape depends on local data.

    Attributes:
        kind: "multimodal" is the shared transformer encoder for pictures and text; "linear" is logistic regression on
            features that the data source gives; "custom" is a module of yours.
        image_size: Height and width in pixels to which pictures are brought; a multiple of 8.
        width: Features of a token inside the encoder; a multiple of ``heads``.
        depth: Number of shared transformer blocks.
        heads: Attention heads of each block.
        embedding: Dimension of the space that all modalities share.
        text_buckets: Rows of the table into which words and their character n-grams are hashed.
        text_tokens: Words of a caption that are read; the rest is cut.
        classes: Outputs of the classification head; 0 for a model without one.
        inputs: For kind "linear": how many features a record has, for example 3969 with ``features=scattering`` of
            pictures of 28 x 28 pixels.
        factory: For kind "custom": ``module:function`` that returns a ``torch.nn.Module``.
        options: For kind "custom": keyword arguments of the factory.
    """

    kind: Literal["multimodal", "linear", "custom"] = "multimodal"
    image_size: int = pydantic.Field(default=32, ge=8, le=256, multiple_of=8)
    width: int = pydantic.Field(default=96, ge=8, le=2048)
    depth: int = pydantic.Field(default=2, ge=1, le=48)
    heads: int = pydantic.Field(default=4, ge=1, le=64)
    embedding: int = pydantic.Field(default=128, ge=2, le=4096)
    text_buckets: int = pydantic.Field(default=4096, ge=16, le=4_194_304)
    text_tokens: int = pydantic.Field(default=12, ge=1, le=512)
    classes: int = pydantic.Field(default=0, ge=0, le=1_000_000)
    inputs: int = pydantic.Field(default=0, ge=0, le=1_000_000)
    factory: EntryPoint | None = None
    options: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "custom" and self.factory is None:
            raise ValueError('factory: kind = "custom" needs factory = "module:function"')
        if self.kind != "custom" and (self.factory is not None or self.options):
            raise ValueError('factory: factory and options are for kind = "custom" only')
        if (self.kind == "linear") != bool(self.inputs):
            raise ValueError('inputs: kind = "linear" needs the number of features, and no other kind has it')
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of heads = {self.heads}")
        return self


class TaskConfig(_Table):
    """What the model is trained for.

    Attributes:
        kind: "retrieval" aligns pictures with captions; "classification" predicts the label; "custom" uses your loss.
        temperature: Start of the learnt temperature of the contrastive loss.
        image_image: Weight of the contrastive loss between two views of the same picture; 0 leaves it out.
        augment: Strength of the random changes to pictures in training, in [0, 1]; 0 leaves them as they are.
        outlines: For "retrieval": share of training pictures shown as line drawings, in [0, 1]. Shapes then count for
            more than colours, which helps where institutions differ in style.
        label_smoothing: For "classification": probability mass spread over all classes.
        loss: For kind "custom": ``module:function`` taking (model, batch), returning a scalar tensor or
            (tensor, dictionary of metrics). Private training needs one value for each record in place of the scalar.
        views: Random views of each picture that a step takes the mean gradient of (De et al. 2022). It makes private
            training better at the price of as many passes; not for your own loss, nor for negatives "batch".
        negatives: For "retrieval": what a pair is told apart from. "batch": the other pairs of the batch, the best
            without privacy. "bank": public captions, so that a pair's loss depends on no other record. "group": the
            other pairs of a small group that is clipped as one, at twice the noise. Private training needs "bank" or
            "group".
        bank: For negatives "bank": public captions, which are no site's data; names and keywords of all emoji if left
            out. They should look like the sites' own: a model that can tell public captions from own ones by their
            style needn't look at the picture.
        bank_size: For negatives "bank": captions of the bank that a step draws.
        group_size: For negatives "group": pairs of a group, on average.
        metrics: Metrics of which secure aggregation tells the coordinator the mean; held-out ones are called
            "evaluation/...". The kind's usual ones if left out. Others stay at the institution.
    """

    kind: Literal["retrieval", "classification", "custom"] = "retrieval"
    temperature: float = pydantic.Field(default=0.07, ge=0.005, le=1.0)
    image_image: float = pydantic.Field(default=0.0, ge=0.0, le=10.0)
    augment: float = pydantic.Field(default=0.2, ge=0.0, le=1.0)
    outlines: float = pydantic.Field(default=0.3, ge=0.0, le=1.0)
    label_smoothing: float = pydantic.Field(default=0.0, ge=0.0, lt=1.0)
    loss: EntryPoint | None = None
    views: int = pydantic.Field(default=1, ge=1, le=64)
    negatives: Literal["batch", "bank", "group"] = "batch"
    bank: tuple[str, ...] = pydantic.Field(default=(), max_length=10_000)
    bank_size: int = pydantic.Field(default=256, ge=2, le=10_000)
    group_size: int = pydantic.Field(default=8, ge=2, le=1_024)
    metrics: tuple[MetricName, ...] | None = pydantic.Field(default=None, max_length=64)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "custom" and self.loss is None:
            raise ValueError('loss: kind = "custom" needs loss = "module:function"')
        if self.kind != "custom" and self.loss is not None:
            raise ValueError('loss: a loss of your own needs kind = "custom"')
        if self.negatives != "batch" and self.kind != "retrieval":
            raise ValueError(f'negatives: "{self.negatives}" is for kind = "retrieval"')
        if self.negatives != "batch" and self.image_image:
            raise ValueError('image_image: two views are told apart within a batch, which needs negatives = "batch"')
        if self.bank and self.negatives != "bank":
            raise ValueError('bank: public captions are for negatives = "bank"')
        if len(set(self.bank)) == 1:
            raise ValueError("bank: one caption can't be told apart from anything; give two at least")
        if self.views > 1 and (self.kind == "custom" or (self.kind == "retrieval" and self.negatives == "batch")):
            raise ValueError('views: several views are for "classification", and negatives = "bank" or "group"')
        if self.views > 1 and not (self.augment or (self.kind == "retrieval" and self.outlines)):
            raise ValueError("views: without random changes (augment) all views are the same")
        return self


class TrainingConfig(_Table):
    """How a participant trains between two versions of the model.

    Attributes:
        optimizer: "adamw" or "sgd"; a fresh one each round. In steps with noise, adamw takes the noise's part out of
            its second moment (DP-AdamBC, Tang et al. 2023).
        learning_rate: Step size at its highest.
        schedule: "constant", or "cosine" from ``learning_rate`` to zero over all rounds of the run.
        warmup_steps: Steps of each round over which the step size rises: a fresh optimizer's first steps are the least
            informed.
        local_steps: Optimizer steps of a round. Not together with ``local_epochs``.
        local_epochs: Passes over the local data of a round, in place of ``local_steps``.
        batch_size: Examples of a step; less where the institution has fewer.
        weight_decay: Decoupled for adamw, L2 for sgd; matrices only, never biases or norms.
        momentum: Of sgd; the first moment's decay of adamw.
        clip_norm: Largest L2 norm of the gradient of a step; 0 for none. Noise that is added to records' gradients has
            a clipping of its own, in [privacy]; this one is left out then.
        average: Decay of a moving average of the weights over the steps of a round, which is what the round gives; 0
            for the last step's weights. It takes out some of the noise of private steps.
        threads: CPU threads inside an operation. Part of the plan since it changes the rounding of sums.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = pydantic.Field(default=4e-3, gt=0.0, le=100.0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = pydantic.Field(default=10, ge=0, le=1_000_000)
    local_steps: int = pydantic.Field(default=20, ge=1, le=1_000_000)
    local_epochs: float | None = pydantic.Field(default=None, gt=0.0, le=10_000)
    batch_size: int = pydantic.Field(default=128, ge=1, le=1_000_000)
    weight_decay: float = pydantic.Field(default=0.05, ge=0.0, le=10.0)
    momentum: float = pydantic.Field(default=0.9, ge=0.0, lt=1.0)
    clip_norm: float = pydantic.Field(default=1.0, ge=0.0, le=1e6)
    average: float = pydantic.Field(default=0.0, ge=0.0, lt=1.0)
    threads: int = pydantic.Field(default=1, ge=1, le=256)

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.local_epochs is not None and "local_steps" in self.model_fields_set:
            raise ValueError("local_epochs: give local_steps or local_epochs, not both")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _without_the_other_length(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A dump must read back: only the length that is in force is written.
        table: dict[str, Any] = handler(self)
        table.pop("local_steps" if self.local_epochs is not None else "local_epochs", None)
        return table

    def steps(self, examples: int) -> int:
        """Optimizer steps of one round for an institution with that many examples."""
        if self.local_epochs is None:
            return self.local_steps
        return max(1, round(self.local_epochs * examples / min(self.batch_size, max(1, examples))))


class LearningConfig(_Table):
    """The three tables together, as the plan carries them. The defaults are those of the emoji demonstration."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task.kind == "retrieval" and self.model.kind == "custom":
            raise ValueError('task.kind: "retrieval" trains the multimodal model; a custom model needs kind = "custom"')
        if self.model.kind == "linear" and self.task.kind != "classification":
            raise ValueError('task.kind: a linear model is for "classification"')
        if self.task.kind == "classification" and self.model.kind != "custom" and self.model.classes < 2:
            raise ValueError("model.classes: classification needs the number of classes, at least 2")
        if self.task.views > 1 and self.model.kind == "linear":
            raise ValueError("task.views: features don't change at random, so that all views are the same")
        if self.task.views > 1 and self.model.kind == "custom":
            raise ValueError("task.views: a model of your own is given each picture once; draw views in your data set")
        return self

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of which a secure sum tells the mean; held-out ones are called ``evaluation/...``.

        What a task reports beyond these stays at the institution.
        """
        if self.task.metrics is not None:
            return tuple(sorted(set(self.task.metrics)))
        kinds = {
            "retrieval": ("loss", *(f"evaluation/{name}" for name in ("loss", *_RETRIEVAL))),
            "classification": ("accuracy", "loss", "evaluation/accuracy", "evaluation/loss"),
            "custom": ("accuracy", "loss", "evaluation/accuracy", "evaluation/loss"),
        }
        return tuple(sorted(kinds[self.task.kind]))

    def entry_points(self) -> frozenset[str]:
        """Names of the user code (``module:function``) that this configuration would import."""
        return frozenset(name for name in (self.model.factory, self.task.loss) if name is not None)
