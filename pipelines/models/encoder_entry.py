"""The file that MLflow runs to load a registered encoder: imports the code beside it.

Separate from `encoder_model.py`, because running this file registers the model with MLflow.
"""

import runpy
from pathlib import Path

from mlflow.models import set_model

FOLDER = Path(__file__).parent
import_code = runpy.run_path(str(FOLDER / "xkd_code.py"))["import_code"]
set_model(import_code(FOLDER, "pipelines.models.encoder_model").EncoderModel(FOLDER))
