"""Layouts of what models predict: where a tensor has its levels, colours, rows and columns.

A layout is a word of N (images), L (levels, or other numbers that a level is drawn from), C (colours), H and W; letters
in brackets share a dimension, the first of them changing slowest. What fits is not always what is meant: a tensor
[N, 6, 4, 4] of 2 levels and 3 colours may be N(LC)HW or N(CL)HW, and then the caller has to say it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

DOCUMENTED = "NLCHW"
LAYOUTS = (
    DOCUMENTED, "NLHW", "NHWL", "NCLHW", "N(LC)HW", "N(CL)HW",
    "NHWCL", "NHWLC", "NCHWL", "NHW(CL)", "NHW(LC)",
    "NL(HW)", "N(LC)(HW)", "N(CL)(HW)", "N(HW)L", "N(HW)(CL)", "N(HW)(LC)", "N(HW)CL", "N(HWC)L", "N(CHW)L",
)  # fmt: skip


def _dimensions(layout: str) -> list[str]:
    """The letters of each dimension: "N(LC)HW" -> ["N", "LC", "H", "W"]."""
    return [group.strip("()") for group in re.findall(r"\([A-Z]+\)|[A-Z]", layout)]


def expected_shape(layout: str, sizes: dict[str, int]) -> list[int]:
    return [math.prod(sizes[letter] for letter in group) for group in _dimensions(layout)]


def arranged(predicted: Tensor, layout: str, sizes: dict[str, int]) -> Tensor:
    """A tensor of that layout as [N, L, C, H, W]; ``sizes`` are those of the letters, that of N left out."""
    letters = "".join(_dimensions(layout))
    if "C" not in letters:  # there is one colour
        letters += "C"
    flat = predicted.reshape(-1, *(sizes[letter] for letter in letters[1:]))
    return flat.permute([letters.index(letter) for letter in "NLCHW"])


def check_layout(layout: str) -> None:
    """Raise a ValueError unless it is one of ``LAYOUTS``."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}; got {layout!r}")


def layouts_of(shape: Sequence[int], sizes: dict[str, int], given: str | None = None) -> list[str]:
    """The layouts that a tensor of this shape may have; of those that mean the same the first one.

    The documented one, where it fits, is meant.

    Args:
        shape: of the tensor.
        sizes: of all letters.
        given: what the caller says it is.

    Raises:
        ValueError: there is none; the message names what was expected.
    """
    known: tuple[str, ...] = LAYOUTS if given is None else (given,)
    if sizes["C"] > 1:
        known = tuple(layout for layout in known if "C" in layout)
    fitting = [layout for layout in known if list(shape) == expected_shape(layout, sizes)]
    if not fitting:
        shown = known if given else (DOCUMENTED, "NLHW" if sizes["C"] == 1 else "N(CL)HW")
        forms = [f"[N, {', '.join(map(str, expected_shape(layout, sizes)[1:]))}] ({layout})" for layout in shown]
        raise ValueError(
            f"model: expected logits {' or '.join(forms)}{'' if given else ' or another of LAYOUTS'}; "
            f"got [N, {', '.join(map(str, shape[1:]))}]"
        )
    if DOCUMENTED in fitting:
        return [DOCUMENTED]
    numbers = torch.arange(math.prod(shape)).view(*shape)
    distinct: dict[str, Tensor] = {}
    for layout in fitting:
        own = arranged(numbers, layout, sizes)
        if not any(torch.equal(own, other) for other in distinct.values()):
            distinct[layout] = own
    return list(distinct)
