"""The arithmetic that one GRPO step cannot do without, counted from the shapes: 2 FLOP a multiply-add.

Each prompt goes through the layers once, however many answers it has; each picture through the vision tower once a
pass; the head sees only positions that predict a token of an answer. Passes: sampling, reference, policy, and the
policy's backward pass for twice its forward. Left out, as small: norms, rotary tables, softmax, AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass

from make_model import MERGE, PATCH_PX, WINDOW_PX, Shape, linears

FORWARDS_OF_SAMPLING = 1
FORWARDS_OF_REFERENCE = 1
FORWARDS_OF_TRAINING = 3


@dataclass(frozen=True)
class Work:
    """What one step samples and trains on."""

    prompts: int = 2
    generations: int = 8
    prompt_tokens: int = 192
    completion_tokens: int = 64
    image_px: int = 336

    @property
    def completions(self) -> int:
        return self.prompts * self.generations

    @property
    def tokens(self) -> int:
        return self.completions * self.completion_tokens


def weights_of(shape: Shape, prefix: str) -> int:
    return sum(out * fan_in for name, (out, fan_in, _) in linears(shape).items() if name.startswith(prefix))


def vision_forward(shape: Shape, image_px: int) -> int:
    """One picture through the vision tower; its side is a multiple of a window's."""
    patches = (image_px // PATCH_PX) ** 2
    in_window = min(patches, (WINDOW_PX // PATCH_PX) ** 2)
    blocks = 2 * patches * weights_of(shape, "visual.blocks.")
    merger = 2 * (patches // MERGE**2) * weights_of(shape, "visual.merger.")
    embedding = 2 * patches * shape.vision_hidden * 3 * 2 * PATCH_PX**2
    full = len(shape.full_attention)
    keys = full * patches + (shape.vision_depth - full) * in_window
    # Scores and weighted values: two products of `hidden` for every pair.
    attention = 4 * shape.vision_hidden * patches * keys
    return blocks + merger + embedding + attention


def text_forward(shape: Shape, work: Work) -> int:
    """One prompt and its answers through the text model. The last token of an answer predicts nothing."""
    prompt, fed = work.prompt_tokens, work.completion_tokens - 1
    positions = prompt + work.generations * fed
    layers = 2 * positions * weights_of(shape, "model.layers.")
    pairs = prompt * (prompt + 1) // 2 + work.generations * (fed * prompt + fed * (fed + 1) // 2)
    attention = 4 * shape.hidden * pairs * shape.layers
    head = 2 * work.generations * work.completion_tokens * shape.hidden * shape.vocab
    return layers + attention + head


def step_flop(shape: Shape, work: Work, beta: float) -> int:
    """FLOP of one step."""
    forwards = FORWARDS_OF_SAMPLING + FORWARDS_OF_TRAINING + (FORWARDS_OF_REFERENCE if beta > 0 else 0)
    forward = text_forward(shape, work)
    if work.image_px:
        forward += vision_forward(shape, work.image_px)
    return forwards * work.prompts * forward
