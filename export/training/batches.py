"""Training batches: decoded pictures or region features, with one caption each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from camp_sdk.data import Split
from camp_sdk.pictures import normalise
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import forget_pages
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """B images with one caption each.

    Args:
        images: pixels [B, 3, H, W] or features [B, R, D], float32.
        tokens: [B, N] int64.
        lengths: [B] int64.
        matches: [B, B] bool, true where an image (row) and a caption (column) belong together. A batch may hold several
            captions of one image, and several images with the same sentence.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    matches: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device (Lightning calls this)."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class CaptionDataset(Dataset[tuple[int, int]]):
    """One item per caption: (image index, caption index). `collate` makes a batch of items.

    Args:
        split: captions, and the image of each.
        store: the images, uint8 pictures [I, S, S, 3] or float32 features [I, R, D], memory-mapped.
        tokenizer: encodes the captions.
        pixels: how to normalise pictures; None for features.
    """

    def __init__(
        self, split: Split, store: NDArray[np.generic], tokenizer: Tokenizer, pixels: PixelSpec | None
    ) -> None:
        self.owner = split.image_of_caption
        self.store, self.pixels = store, pixels
        self.tokens = tokenizer.encode(split.captions)
        # Captions with equal tokens are equal to the network.
        self._sentences = self.tokens.distinct()[1]
        self._written = np.unique(self._key(self.owner, self._sentences))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self.owner[index]), index

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        """Gather the images and captions of a batch, padded to its longest caption."""
        images, captions = (np.array(column) for column in zip(*items, strict=True))
        lengths = self.tokens.lengths[captions]
        return Batch(
            self.image_batch(images),
            torch.from_numpy(self.tokens.ids[captions, : lengths.max()]),
            torch.from_numpy(lengths),
            torch.from_numpy(self._matches(images, captions)),
        )

    def _matches(self, images: NDArray[np.integer], captions: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True [B, B] where the sentence of a caption was written for an image."""
        keys = self._key(images[:, None], self._sentences[captions])
        found = np.searchsorted(self._written, keys).clip(max=len(self._written) - 1)
        return np.asarray(self._written[found] == keys)

    def _key(self, images: NDArray[np.integer], sentences: NDArray[np.integer]) -> NDArray[np.integer]:
        """One number for an image and a sentence."""
        return images * len(self) + sentences

    def image_batch(self, indices: NDArray[np.integer]) -> Tensor:
        """Images as the network takes them: normalised pixels, or features.

        Raises InputError, naming an image with NaN.
        """
        rows = np.asarray(self.store[indices])
        forget_pages(self.store)
        if self.pixels:
            return torch.from_numpy(normalise(rows, self.pixels))
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=(1, 2))
        if not finite.all():
            raise InputError(f"the features of image {indices[int(finite.argmin())]} are NaN or infinite")
        return torch.from_numpy(rows)

    def loader(self, batch_size: int, sampler: Sampler[Any], workers: int = 0) -> DataLoader[Batch]:
        """Batches in the sampler's order, without a smaller last one, because negatives come from the batch."""
        return DataLoader(
            self,  # type: ignore[arg-type]  # items are pairs of indices, collated into a Batch
            batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class NeighbourSampler(DistributedSampler[tuple[int, int]]):
    """Every caption once per epoch, in an order that depends only on seed and epoch; one device's share of it.

    Groups of ``neighbours`` consecutive images stay together, with one caption each. If a data set stores look-alikes
    side by side, each has the other, its hardest negative, in its batch, except at the borders of batches.

    Args:
        data: the captions.
        neighbours: images per group.
        seed: the seed of the order.
        device: index of this device.
        devices: number of devices.
    """

    def __init__(self, data: CaptionDataset, neighbours: int, seed: int, device: int = 0, devices: int = 1) -> None:
        super().__init__(data, devices, device, seed=seed, drop_last=True)
        self.owner, self.neighbours = data.owner, neighbours

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # torch types it by what the data set returns
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.owner))
        # By image, in random order inside one.
        captions = self._captions_of_epoch(shuffled[np.argsort(self.owner[shuffled], kind="stable")])
        owner = self.owner[captions]
        counts = np.bincount(owner)
        # 0 for the first caption of its image, 1 for the second, and so on.
        turn = np.arange(len(owner)) - np.searchsorted(owner, owner)
        # Spread over the epoch; otherwise the last batches would hold only the images with most captions.
        turn = turn * counts.max() // counts[owner]
        group = owner // self.neighbours
        lots = rng.random((turn.max() + 1, group.max() + 1))  # groups are shuffled in every turn
        order = captions[np.lexsort((owner, lots[turn, group], turn))]
        start = self.rank * self.num_samples  # a slice: every n-th would separate neighbours
        return iter(order[start : start + self.num_samples].tolist())

    def _captions_of_epoch(self, captions: NDArray[np.integer]) -> NDArray[np.integer]:
        """The captions of this epoch, of all captions in the order of their images."""
        return captions


class OneCaptionSampler(NeighbourSampler):
    """The same with one caption of each image per epoch, drawn again in every epoch.

    Args:
        data: the captions.
        neighbours: images per group.
        seed: the seed of the order and of the captions drawn.
        device: index of this device.
        devices: number of devices.
    """

    def __init__(self, data: CaptionDataset, neighbours: int, seed: int, device: int = 0, devices: int = 1) -> None:
        super().__init__(data, neighbours, seed, device, devices)
        self.num_samples = len(np.unique(self.owner)) // devices
        self.total_size = self.num_samples * devices

    def _captions_of_epoch(self, captions: NDArray[np.integer]) -> NDArray[np.integer]:
        # The first of each image, which is a random one.
        return captions[np.unique(self.owner[captions], return_index=True)[1]]
