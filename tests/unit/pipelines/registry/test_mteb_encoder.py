"""mteb's tasks run with our encoders: a made task of two clips, without a network."""

import numpy as np
import pytest
from mlflow.models import Model

from pipelines.errors import UserError
from pipelines.registry.package import save_package, stage
from tests.helpers.encoders import WIDTH, example_encoder, write_media

mteb = pytest.importorskip("mteb", reason="mteb is not installed: xkd[mteb]")


@pytest.fixture(scope="module", params=["video", "audio"])
def encoder(request, tmp_path_factory):
    from pipelines.registry.mteb_encoder import MtebEncoder

    found, info = example_encoder(request.param)
    staged = tmp_path_factory.mktemp("staged")
    stage(found, info, staged)
    folder = tmp_path_factory.mktemp("models") / request.param
    save_package(staged, info, "# card\n", folder, Model())
    return MtebEncoder(str(folder), name=f"xkd/{request.param}", chunk_size=3)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [str(write_media(folder / f"{seed}.mkv", seconds=1.25, seed=seed)) for seed in (0, 1)]


def dataset_of(modality, films, **columns):
    from datasets import Audio, Dataset, Video

    kind = {"audio": Audio, "video": Video}[modality]
    return Dataset.from_dict({modality: films, **columns}).cast_column(modality, kind())


def task_of(modality, films):
    """A classification of two clips, which mteb has once for training and once for the test."""
    from datasets import DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    class TwoClips(AbsTaskClassification):
        metadata = TaskMetadata(
            name=f"Two{modality.title()}Clips",
            description="Two clips.",
            dataset={"path": "made/here", "revision": "1"},
            type={"audio": "AudioClassification", "video": "VideoClassification"}[modality],
            category={"audio": "a2c", "video": "v2c"}[modality],
            modalities=[modality],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )
        input_column_name = modality
        samples_per_label = 4
        n_experiments = 2

        def load_data(self, *_arguments, **_settings):
            part = dataset_of(modality, films * 4, label=[0, 1] * 4)
            self.dataset = DatasetDict(train=part, test=part)
            self.data_loaded = True

    return TwoClips()


def test_a_made_task_is_run_and_scored(encoder, films, tmp_path):
    task = task_of(encoder.modality, films)
    results = mteb.evaluate(
        encoder, [task], cache=None, overwrite_strategy="always", prediction_folder=None
    )
    (scores,) = results.task_results[0].scores["test"]
    assert scores["accuracy"] == 1.0  # the clips that it was trained on
    assert results.model_name == f"xkd/{encoder.modality}"


def test_embeddings_are_those_of_the_model(encoder, films):
    from torch.utils.data import DataLoader

    metadata = task_of(encoder.modality, films).metadata
    loader = DataLoader(dataset_of(encoder.modality, films * 2))
    found = encoder.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default")
    assert found.shape == (4, WIDTH)
    np.testing.assert_allclose(found, encoder.model.predict({"path": films * 2}), atol=1e-6)
    similarity = np.asarray(encoder.similarity(found, found))
    np.testing.assert_allclose(np.diag(similarity), 1.0, atol=1e-5)


def test_a_task_of_another_modality_is_named(encoder, films):
    from datasets import Dataset
    from torch.utils.data import DataLoader

    loader = DataLoader(Dataset.from_dict({"text": ["a"]}))
    metadata = task_of(encoder.modality, films).metadata
    with pytest.raises(UserError, match=rf"has no {encoder.modality}, which the encoder takes"):
        encoder.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default")
