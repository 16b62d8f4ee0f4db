"""The arithmetic that one GRPO step cannot do without, counted from the shapes: 2 FLOP a multiply-add.

Each prompt goes through the layers once, however many answers it has; each image through the vision tower once a
pass; the head sees only positions that predict a token of an answer. Passes: sampling, reference, policy, and the
policy's backward pass for twice its forward. Left out, as small: norms, rotary tables, softmax, AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass

from shapes import DEFAULT_FAMILY, FAMILIES, MERGE, WINDOW_PX, Family, Shape, linears

FORWARDS_OF_SAMPLING = 1
FORWARDS_OF_REFERENCE = 1
FORWARDS_OF_TRAINING = 3
# Forward, and the gradients of the inputs alone.
FORWARDS_OF_FROZEN = 2


@dataclass(frozen=True)
class Work:
    """What one step samples and trains on."""

    prompts: int = 2
    generations: int = 8
    prompt_tokens: int = 192
    completion_tokens: int = 64
    image_px: int = 336
    # Width and height, px, of images that are not square; `image_px` is then not read.
    image_size: tuple[int, int] | None = None
    patch_px: int = FAMILIES[DEFAULT_FAMILY].patch_px

    @classmethod
    def of(cls, family: Family, **others) -> Work:
        """The benchmark's work with an image that has as many tokens in every family."""
        return cls(**{"image_px": family.image_px, "patch_px": family.patch_px, **others})

    @property
    def token_px(self) -> int:
        return self.patch_px * MERGE

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image, its sides rounded as the image processor does."""
        width, height = self.image_size or (self.image_px, self.image_px)
        return round(height / self.token_px) * MERGE, round(width / self.token_px) * MERGE

    @property
    def image_tokens(self) -> int:
        rows, columns = self.patch_grid
        return rows * columns // MERGE**2

    @property
    def completions(self) -> int:
        return self.prompts * self.generations

    @property
    def tokens(self) -> int:
        return self.completions * self.completion_tokens


def weights_of(shape: Shape, *prefixes: str) -> int:
    return sum(out * fan_in for name, (out, fan_in, _) in linears(shape).items() if name.startswith(prefixes))


def layer_weights(shape: Shape) -> int:
    return weights_of(shape, f"{shape.family.text}.layers.")


def window_pairs(grid: tuple[int, int], patch_px: int) -> int:
    """Pairs of patches that lie in one window; those at the edges are smaller."""
    edge = WINDOW_PX // patch_px
    rows, columns = (sum(min(edge, side - start) ** 2 for start in range(0, side, edge)) for side in grid)
    return rows * columns


def vision_forward(shape: Shape, grid: tuple[int, int]) -> int:
    """One image of `grid` patches through the vision tower."""
    patches, tower, patch_px = grid[0] * grid[1], shape.family.vision, shape.family.patch_px
    blocks = 2 * patches * weights_of(shape, f"{tower}.blocks.")
    mergers = 2 * (patches // MERGE**2) * weights_of(shape, f"{tower}.merger.", f"{tower}.deepstack_merger_list.")
    embedding = 2 * patches * shape.vision_hidden * 3 * 2 * patch_px**2
    full = shape.num_full_attention
    pairs = full * patches**2 + (shape.vision_depth - full) * window_pairs(grid, patch_px)
    # Scores and weighted values: two products of `hidden` for every pair.
    attention = 4 * shape.vision_hidden * pairs
    return blocks + mergers + embedding + attention


def text_forward(shape: Shape, work: Work) -> int:
    """One prompt and its answers through the text model. The last token of an answer predicts nothing."""
    prompt, fed = work.prompt_tokens, work.completion_tokens - 1
    positions = prompt + work.generations * fed
    layers = 2 * positions * layer_weights(shape)
    pairs = prompt * (prompt + 1) // 2 + work.generations * (fed * prompt + fed * (fed + 1) // 2)
    attention = 4 * shape.hidden * pairs * shape.layers
    head = 2 * work.generations * work.completion_tokens * shape.hidden * shape.vocab
    return layers + attention + head


def step_flop(shape: Shape, work: Work, beta: float) -> int:
    """FLOP of one step."""
    forwards = FORWARDS_OF_SAMPLING + FORWARDS_OF_TRAINING + (FORWARDS_OF_REFERENCE if beta > 0 else 0)
    forward = text_forward(shape, work)
    if work.image_tokens:
        forward += vision_forward(shape, work.patch_grid)
    return forwards * work.prompts * forward


def train_flop(shape: Shape, work: Work, adapters: bool) -> int:
    """FLOP of the policy's forward and backward pass. With adapters over a frozen text model no gradient of its weights is needed, and the
    frozen tower's features are kept from the sampling."""
    if adapters:
        return FORWARDS_OF_FROZEN * work.prompts * text_forward(shape, work)
    return FORWARDS_OF_TRAINING * work.prompts * (text_forward(shape, work) + vision_forward(shape, work.patch_grid))


def decode_bytes(shape: Shape, bytes_a_number: int = 2) -> int:
    """Bytes of weights that a decoding pass reads, however many answers it serves: the text layers and the head."""
    return bytes_a_number * (layer_weights(shape) + shape.vocab * shape.hidden)
