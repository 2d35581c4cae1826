"""Operations and bytes of one training step, worked out from shapes.

`benchmarks/count.py` counts the same on PyTorch's meta device; a test holds the two together.
"""

from dataclasses import dataclass

from uni_dpo.plan.shapes import ModelShape, TextShape, VisionShape

KEPT_BYTES, CHUNK_BYTES = 256 * 2**20, 32 * 2**20
"""What `logprobs.py` keeps of the answers' logits for the backward pass, and makes of them at once."""
LENGTH_MULTIPLE = 8
LOGIT_BYTES = 20
"""Of a logit, where all are made: in float32 itself and its logarithm, of policy and reference, and a kernel's copy."""


@dataclass(frozen=True)
class StepShape:
    """One step of one process; lengths in tokens.

    Attributes:
        questions: questions in the batch.
        answers: different answers to each in the batch.
        pairs: pairs in the batch.
        prompt: the prompt, image tokens included.
        image: image tokens of a prompt.
        answer: an answer.
        shared: whether a question is one sequence, rather than each answer of each pair one.
        bytes: of an activation: 2 in half precision, 4 in float32.
        reference: whether the reference runs in the step.
        full: whether all of the language model is tuned, rather than adapters in all of its linear maps.
        lora_rank: of the adapters.
        checkpointing: whether activations are made again in the backward pass.
        tuned_vision: whether the tower is trained too.
    """

    questions: float
    answers: float
    pairs: float
    prompt: float
    image: float
    answer: float
    shared: bool = True
    bytes: int = 2
    reference: bool = True
    full: bool = True
    lora_rank: int = 8
    checkpointing: bool = False
    tuned_vision: bool = False

    @property
    def rows(self) -> float:
        """Sequences of the batch."""
        return self.questions if self.shared else 2 * self.pairs

    @property
    def length(self) -> float:
        """Tokens of a sequence."""
        if not self.shared:
            return self.prompt + self.answer
        return -(-(self.prompt + self.answers * self.answer) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE

    @property
    def tokens(self) -> float:
        """Tokens of the batch that go through the language model."""
        return self.rows * self.length

    @property
    def scored(self) -> float:
        """Tokens that are projected onto the vocabulary."""
        return self.questions * self.answers * self.answer if self.shared else self.tokens

    @property
    def attended(self) -> float:
        """Products of a query with a key in a layer, as kernels make them: a causal square counts whole."""
        if not self.shared:
            return self.rows * self.length**2
        return self.rows * (self.prompt**2 + (self.length - self.prompt) * self.length)


def step_flops(model: ModelShape, step: StepShape) -> float:
    """Floating-point operations of a step: two per multiplication, as PyTorch counts them."""
    text = model.text
    layers = 2.0 * step.tokens * text.linear * text.layers
    attention = 4.0 * text.query * step.attended * text.layers
    head = 2.0 * step.scored * text.embedding
    adapters = 0.0 if step.full else 2.0 * step.tokens * adapter_weights(text, step.lora_rank)
    forward = layers + attention + head + adapters
    again = layers + attention + adapters if step.checkpointing else 0.0
    backward = 2.5 * attention + (2 * layers if step.full else layers + 2 * adapters) + head * (2 if step.full else 1)
    if step.shared and step.scored * text.vocabulary * 4 > KEPT_BYTES:
        backward += head
    means = 2.0 * step.questions * step.answers * text.embedding if step.shared else 0.0
    reference = layers + attention + head if step.reference else 0.0
    return forward + again + backward + means + reference + _vision_flops(model.vision, step)


def _vision_flops(vision: VisionShape | None, step: StepShape) -> float:
    """Operations of the tower and the projector on all images of the batch."""
    if vision is None or not step.image:
        return 0.0
    patches = step.image * vision.merge**2
    linear = vision.patch_numbers * vision.width + vision.layers * vision.linear
    windowed = vision.layers - vision.whole_layers
    keys = vision.whole_layers * patches + windowed * min(patches, vision.window or patches)
    merged = step.image * vision.merger * (1 + vision.deepstack)
    once = step.rows * (2.0 * patches * linear + 4.0 * vision.width * patches * keys + 2.0 * merged)
    runs = 1 if step.shared and not step.tuned_vision else 1 + step.reference
    return once * (runs + (2 + step.checkpointing if step.tuned_vision else 0))


def adapter_weights(text: TextShape, rank: int) -> int:
    """Return the weights of LoRA adapters of all linear maps of the language model."""
    ends = (2 * (text.hidden + text.query), 2 * (text.hidden + text.keys), 3 * (text.hidden + text.intermediate))
    return text.layers * rank * sum(ends)


@dataclass(frozen=True)
class StepBytes:
    """What a step holds at its peak above weights and optimizer.

    Attributes:
        activations: what the language model keeps for the backward pass, and what one layer's takes.
        logits: logits, their logarithms and the scored hidden states.
        images: pixels, features, and what the tower holds while it runs.
        peak: of these and the gradients at once, which is less than their sum: gradients come as activations go.
    """

    activations: float
    logits: float
    images: float
    peak: float


def step_bytes(model: ModelShape, step: StepShape, gradient_bytes: float) -> StepBytes:
    """Return what a step takes above the weights; `gradient_bytes` are those of all gradients."""
    text, size = model.text, step.bytes
    layer = _layer_bytes(text, step)
    kept = text.layers * (step.tokens * text.hidden * size if step.checkpointing else layer)
    norm = step.tokens * text.hidden * (4 + 2 * size)
    if step.shared:  # the mask of the answers' rows, one for all layers
        norm += step.rows * (step.length - step.prompt) * step.length * (size + 1)
    recomputed = layer if step.checkpointing else 0.0
    passing = step.tokens * (3 * text.intermediate + 2 * text.hidden) * size
    images, tower = _image_bytes(model.vision, step)
    # a frozen tower whose features serve both models is done before the language model begins
    working = 0.0 if step.shared and not step.tuned_vision else tower
    first = images + tower
    images += working
    logits = _logit_bytes(text, step)
    head = text.embedding * size if step.full else 0.0
    start = kept + norm + images + (max(logits, head) if step.shared else logits)
    middle = kept + norm + images + recomputed + passing + (head if step.full else 0.0)
    own = text.embedding * size if step.full else 0.0  # the embedding's gradient, which comes last
    if text.tied:  # then head and embedding have one each, and their sum
        end = max(gradient_bytes + layer + passing + images, gradient_bytes + 2 * own)
    else:
        end = max(gradient_bytes - own + layer + passing + images, gradient_bytes)
    return StepBytes(kept + norm + recomputed, logits, images, max(first, start, middle, end))


def _layer_bytes(text: TextShape, step: StepShape) -> float:
    """What a layer keeps for its backward pass, with attention that keeps no weights."""
    size = step.bytes
    norms = 2 * text.hidden * (4 + 2 * size) + 8
    # in a shared sequence the answers' keys are repeated per head, and what prompt and answers attend is joined
    attention = (2 * text.keys + (5 if step.shared else 2) * text.query) * size + 4 * text.heads
    own_norms = (text.query + text.keys) * (4 + size) if text.normed else 0
    gate = 4 * text.intermediate * size
    adapters = 0 if step.full else (5 * text.hidden + text.query + text.intermediate) * size
    return step.tokens * (norms + attention + own_norms + gate + adapters)


def _logit_bytes(text: TextShape, step: StepShape) -> float:
    if not step.shared:
        return step.tokens * text.vocabulary * LOGIT_BYTES
    whole = step.scored * text.vocabulary * 4
    hidden = step.scored * text.hidden * (step.bytes + 4)
    return hidden + (whole if whole <= KEPT_BYTES else CHUNK_BYTES)


def _image_bytes(vision: VisionShape | None, step: StepShape) -> tuple[float, float]:
    """Pixels and features of the batch; and a layer of the tower at work, all of its layers where it is trained."""
    if vision is None or not step.image:
        return 0.0, 0.0
    patches = step.rows * step.image * vision.merge**2
    pixels = patches * vision.patch_numbers * 4
    features = step.rows * step.image * vision.out * step.bytes * (1 + vision.deepstack)
    layer = patches * (2 * vision.intermediate + 4 * vision.width) * step.bytes
    layers = 1 if not step.tuned_vision else 2 if step.checkpointing else vision.layers
    return pixels + features, layer * layers
