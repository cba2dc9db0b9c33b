"""A tiny XKD, its checkpoint, the scores of an evaluation, and media that the tests write."""

from pathlib import Path

import av
import numpy as np
import torch

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.config.ingest import IngestSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.schema import FORMAT_VERSION, MANIFEST
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.scores import FeatureScores, MeasureScore, NetworkScore, Scores
from pipelines.files import write_json
from pipelines.models.checkpoints import AUDIO_CENTER, VIDEO_CENTER, TrainingInfo, save_checkpoint
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.registry.versions import find_or_make_version, registered_model
from pipelines.tracking.runs import open_run
from xkd_core.config import (
    AudioConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    TransformerConfig,
    VideoConfig,
)
from xkd_core.encoders import build_encoder
from xkd_core.xkd import build_xkd, model_tensors

WIDTH = 24
CLIPS = ClipSettings(segment_seconds=1.5, min_segment_seconds=0.5, short_side=24, num_windows=2)


def model_config(variant="modality_specific"):
    """Clips of one second: 8 frames of 32 pixels, 4000 samples."""
    return ModelConfig(
        variant=variant,
        video=VideoConfig(num_frames=8, size=32, local_num_frames=4, local_size=16, patch_size=16),
        audio=AudioConfig(
            num_samples=4_000,
            sample_rate=4_000,
            local_num_samples=2_000,
            num_mels=16,
            n_fft=256,
            hop_length=127,
        ),
        encoder=TransformerConfig(width=WIDTH, depth=1, num_heads=2),
        decoder=TransformerConfig(width=16, depth=1, num_heads=2),
        head=HeadConfig(hidden_width=16, bottleneck_width=8, output_width=32),
    )


def example_encoder(modality, seed=0):
    """An encoder with random weights and what is known about it."""
    torch.manual_seed(seed)
    encoder = build_encoder(model_config(), modality).eval()
    return encoder, EncoderInfo(modality, model_config(), CLIPS, {"step": 7})


def write_checkpoint(
    folder: Path, *, seed=0, step=7, variant="modality_specific", nested=False
) -> Path:
    """A checkpoint, and beside it as much of the clip dataset as registering reads.

    Nested, the checkpoint lies in the folder of its run, as training leaves it.
    """
    dataset = folder / "clips"
    checkpoint = folder / ("example" if nested else "") / f"checkpoint-{variant}-{seed}-{step}"
    checkpoint.mkdir(parents=True)
    dataset.mkdir(exist_ok=True)
    ingest = IngestSettings(
        segment_seconds=CLIPS.segment_seconds,
        min_segment_seconds=CLIPS.min_segment_seconds,
        short_side=CLIPS.short_side,
        sample_rate=4_000,
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "dataset_id": "made",
        "clips": 0,
        "settings": ingest.model_dump(mode="json"),
    }
    write_json(dataset / MANIFEST, manifest)
    config = PretrainConfig(
        name="example",
        dataset=str(dataset),
        output=str(folder),
        epochs=1,
        batch_size=2,
        model=model_config(variant),
        optimizer=OptimizerConfig(warmup_epochs=0.0),
    )
    torch.manual_seed(seed)
    tensors = dict(model_tensors(build_xkd(config.model)))
    tensors |= {VIDEO_CENTER: torch.zeros(32), AUDIO_CENTER: torch.zeros(32)}
    info = TrainingInfo(
        next_step=step,
        total_steps=step,
        steps_per_epoch=1.0,
        config=config.model_dump(mode="json"),
        dataset_id="training-clips",
        run_id="pretrain-run",
        code_version="code",
    )
    save_checkpoint(checkpoint, tensors, {}, info)
    return checkpoint


def example_scores(linear, *, dataset_id="clips-1", step=7, interval=0.05):
    """What an evaluation of `write_checkpoint`'s checkpoint finds."""
    trained, untrained = (
        NetworkScore(
            measures={
                "knn": MeasureScore({"top1": Figure(knn)}, (knn, None)),
                "linear": MeasureScore(
                    {"top1": Figure(share, share - interval, share + interval)}, (share, None)
                ),
            },
            majority=0.25,
            num_train=80,
            num_test=40,
            num_sources=40,
        )
        for knn, share in ((linear / 2, linear), (0.1, 0.2))
    )
    networks = {"trained": trained, "untrained": untrained}
    return Scores(
        checkpoint="elsewhere",
        step=step,
        pretrain_run_id="pretrain-run",
        evaluate_run_id="evaluate-run",
        dataset_id=dataset_id,
        role="teacher",
        num_windows=2,
        found=FeatureScores(("a", "b"), 80, 40, "", {"video": networks, "audio": networks}),
    )


def write_media(path: Path, *, seconds=3.0, picture=True, sound=True, seed=0) -> Path:
    """A film of moving noise with a tone; lossless, so that decoding gives what was written."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        streams = []
        if picture:
            video = container.add_stream("ffv1", rate=8)
            video.width, video.height, video.pix_fmt = 48, 32, "bgr0"
            streams.append(video)
        if sound:
            audio = container.add_stream("pcm_s16le", rate=4_000, layout="mono")
            streams.append(audio)
        if picture:
            noise = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            for number in range(round(seconds * 8)):
                pixels = np.roll(noise, 3 * number, axis=1)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(video.encode(frame.reformat(format="bgr0")))
            container.mux(video.encode(None))
        if sound:
            times = np.arange(round(seconds * 4_000)) / 4_000
            tone = np.sin(2 * np.pi * (300 + 100 * seed) * times * (1 + times / 4))
            samples = (8_000 * tone).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 4_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def registered_encoder(home):
    """Tracking of a new home where `xkd-video@champion` is a video encoder."""
    tracking = TrackingSettings(uri=f"sqlite:///{home}/mlflow.db")
    encoder, info = example_encoder("video")
    run = open_run(JobConfig(tracking=tracking), "promote", "test")
    registered_model(run.client(), "xkd-video", info)
    version = find_or_make_version(encoder, info, "xkd-video", "# card\n", run)
    run.client().set_registered_model_alias("xkd-video", "champion", version.version)
    return tracking
