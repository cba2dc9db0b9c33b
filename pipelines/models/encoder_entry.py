"""What MLflow runs to load a registered encoder; beside it in the model lies the code it imports.

Kept apart from `encoder_model.py`, because naming the model is a side effect of importing this.
"""

from mlflow.models import set_model

from pipelines.models.encoder_model import EncoderModel

set_model(EncoderModel())
