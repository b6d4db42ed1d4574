"""Frames of video files: GIF and other moving pictures by Pillow, the rest by a decoder that is installed."""

from __future__ import annotations

import importlib.util
import io
import os
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phyla.errors import ArgumentError, MissingExtraError, nearest, require

from .inputs import is_image
from .load import AGENT, MAX_BYTES


@dataclass
class VideoMetadata:
    """What is known of a video: frames, frames a second, seconds, decoder, and the frames that were taken."""

    total_num_frames: int
    fps: float
    duration: float
    video_backend: str
    frames_indices: Any = field(default=None)


def evenly(metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None) -> np.ndarray:
    """Indices of `num_frames` frames, or of `fps` frames a second, at equal steps; all without either."""
    total = metadata.total_num_frames
    if num_frames is None and fps is not None:
        num_frames = int(total / metadata.fps * fps)
    if num_frames is None:
        return np.arange(total)
    if not 0 < num_frames <= total:
        raise ArgumentError(
            f"a video of {total} frames at {metadata.fps:g} a second has no {num_frames} frames to take: "
            "ask for fewer (num_frames or fps)"
        )
    return np.arange(0, total, total / num_frames, dtype=int)


Choose = Callable[[VideoMetadata], Any]


def _described(count: int, fps: float, backend: str) -> VideoMetadata:
    return VideoMetadata(int(count), float(fps), float(count / fps) if fps else 0.0, backend)


def _by_pillow(file: Any, choose: Choose) -> tuple[np.ndarray, VideoMetadata]:
    with require("PIL.Image", "vision", "reading moving pictures").open(file) as picture:
        count = getattr(picture, "n_frames", 1)
        milliseconds = 0.0
        for i in range(count):
            picture.seek(i)
            milliseconds += picture.info.get("duration", 0) or 0
        about = _described(count, count * 1000 / milliseconds if milliseconds else 0.0, "pillow")
        about.frames_indices = choose(about)
        frames = []
        for i in about.frames_indices:
            picture.seek(int(i))
            frames.append(np.array(picture.convert("RGB")))
    return np.stack(frames), about


def _by_pyav(file: Any, choose: Choose) -> tuple[np.ndarray, VideoMetadata]:
    with require("av", "video", "reading videos with pyav").open(file) as container:
        stream = container.streams.video[0]
        about = _described(stream.frames, float(stream.average_rate), "pyav")
        about.frames_indices = choose(about)
        wanted, frames = {int(i) for i in about.frames_indices}, []
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if i >= max(wanted):
                break
    return np.stack(frames), about


def _by_opencv(file: Any, choose: Choose) -> tuple[np.ndarray, VideoMetadata]:
    opencv = require("cv2", "video", "reading videos with opencv")
    video = opencv.VideoCapture(file)
    about = _described(video.get(opencv.CAP_PROP_FRAME_COUNT), video.get(opencv.CAP_PROP_FPS), "opencv")
    about.frames_indices = choose(about)
    wanted, frames = {int(i) for i in about.frames_indices}, []
    for i in range(max(wanted) + 1):
        found, frame = video.read()
        if not found:
            break
        if i in wanted:
            frames.append(frame[..., ::-1])
    video.release()
    return np.stack(frames), about


def _by_decord(file: Any, choose: Choose) -> tuple[np.ndarray, VideoMetadata]:
    video = require("decord", "video", "reading videos with decord").VideoReader(uri=file)
    about = _described(len(video), video.get_avg_fps(), "decord")
    about.frames_indices = choose(about)
    return video.get_batch(about.frames_indices).asnumpy(), about


DECODERS = {
    "pillow": (_by_pillow, "PIL"),
    "pyav": (_by_pyav, "av"),
    "decord": (_by_decord, "decord"),
    "opencv": (_by_opencv, "cv2"),
}
_MOVING_PICTURES = (".gif", ".webp", ".apng", ".png", ".tif", ".tiff")


def load_video(
    video: Any,
    num_frames: int | None = None,
    fps: float | None = None,
    backend: str | None = None,
    sample_indices_fn: Choose | None = None,
) -> Any:
    """(frames (T, H, W, 3) uint8, VideoMetadata) of a path or URL; given frames come back as they are.

    Takes num_frames frames, or fps frames a second, or what sample_indices_fn chooses of the metadata, else
    all. backend: one of DECODERS, else Pillow for moving pictures and an installed decoder for the rest.
    """
    if is_image(video) or (isinstance(video, (list, tuple)) and len(video) and is_image(video[0])):
        return video
    if sum(option is not None for option in (num_frames, fps, sample_indices_fn)) > 1:
        raise ArgumentError("give one of num_frames, fps and sample_indices_fn, not several")
    if not isinstance(video, (str, os.PathLike)):
        raise ArgumentError(
            f"a video must be a path, an http(s) URL or frames, but is {type(video).__name__}"
        )
    name = os.fspath(video)
    address = urllib.parse.urlsplit(name[:2048])
    remote = address.scheme in ("http", "https")
    if not remote and not os.path.isfile(name):
        raise ArgumentError(f"a video must be a file or an http(s) URL, but there is no file {name!r}")
    read = _decoder(backend, (address.path if remote else name).lower(), remote)
    choose = sample_indices_fn or (lambda metadata: evenly(metadata, num_frames, fps))
    return read(_fetched(name) if remote else name, choose)


def _fetched(address: str) -> io.BytesIO:
    with urllib.request.urlopen(urllib.request.Request(address, headers=AGENT), timeout=60) as answer:
        data = answer.read(8 * MAX_BYTES + 1)
    if len(data) > 8 * MAX_BYTES:
        raise ArgumentError(f"a video may have at most {8 * MAX_BYTES} bytes, but {address!r} has more")
    return io.BytesIO(data)


def _decoder(backend: str | None, name: str, remote: bool) -> Callable:
    if backend is not None:
        if backend not in DECODERS:
            hint = nearest(backend, DECODERS)
            raise ArgumentError(f"backend must be one of {list(DECODERS)}, but is {backend!r}.{hint}")
        if remote and backend == "opencv":
            raise ArgumentError("opencv reads files, not URLs: choose backend='pyav' or 'decord'")
        return DECODERS[backend][0]
    if name.endswith(_MOVING_PICTURES):
        return _by_pillow
    for one in ("pyav", "decord") if remote else ("pyav", "decord", "opencv"):
        if importlib.util.find_spec(DECODERS[one][1]) is not None:
            return DECODERS[one][0]
    raise MissingExtraError(
        'reading videos needs a decoder (av, decord or opencv-python): pip install "phyla[video]"'
    )
