"""The largest connected parts of labels, as MONAI's component of the same name, which needs scikit-image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.pipeline import Array


def largest(mask: Array, connectivity: int | None, count: int) -> Array:
    """Return the mask with its `count` largest connected parts only; of equal ones the later ones.

    Parameters
    ----------
    mask
        bool.
    connectivity
        Steps along axes that neighbours are apart at most; None: as many as there are axes.
    """
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim)
    parts, found = ndimage.label(mask, structure)
    if found <= count:
        return mask
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    return np.isin(parts, np.argsort(sizes)[::-1][:count])


class KeepLargestConnectedComponentd:
    """Of a label map, or of one-hot channels: keep the largest parts of each label, or of all of them together.

    Parameters
    ----------
    keys
        Of the dictionary.
    applied_labels
        Values or channels; None: all but 0.
    is_onehot
        None: where there are several channels.
    independent
        Whether each label is taken for itself.
    connectivity, num_components
        As `largest`.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        applied_labels: Sequence[int] | int | None = None,
        is_onehot: bool | None = None,
        independent: bool = True,
        connectivity: int | None = None,
        num_components: int = 1,
    ) -> None:
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.labels = [applied_labels] if isinstance(applied_labels, int) else applied_labels
        self.is_onehot, self.independent = is_onehot, independent
        self.connectivity, self.count = connectivity, num_components

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entry with the other parts set to 0; axes (channel, then those of space)."""
        return {**entry, **{key: self._kept(entry[key]) for key in self.keys}}

    def _kept(self, image: torch.Tensor) -> torch.Tensor:
        values = image.detach().cpu().numpy()
        onehot = len(values) > 1 if self.is_onehot is None else self.is_onehot
        labels = self.labels if self.labels is not None else self._all(values, onehot)
        masks = [values[label] > 0 if onehot else values[0] == label for label in labels]
        if not self.independent and masks:
            whole = largest(np.any(masks, axis=0), self.connectivity, self.count)
            kept = [mask & whole for mask in masks]
        else:
            kept = [largest(mask, self.connectivity, self.count) for mask in masks]
        cleaned = image.clone()
        for label, mask, keep in zip(labels, masks, kept, strict=True):
            cleaned[label if onehot else 0][torch.from_numpy(mask & ~keep).to(image.device)] = 0
        return cleaned

    @staticmethod
    def _all(values: Array, onehot: bool) -> list[int]:
        found = np.flatnonzero(values.any(tuple(range(1, values.ndim)))) if onehot else np.unique(values)
        return [int(label) for label in found if label != 0]
