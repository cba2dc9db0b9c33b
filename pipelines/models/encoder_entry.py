"""The file that MLflow runs to load a registered encoder: imports the code beside it.

    MODEL/encoder_entry.py                               this file
    MODEL/code/xkd_1a2b3c4d/pipelines/models/...         the code of this encoder alone
    MODEL/code/xkd_1a2b3c4d/xkd_core/...

The code has a package name of its own, from a hash of what the model holds. So encoders of several
versions run in one process, each with its own code, beside a checkout of this project and beside a
package `pipelines` of the user's. A second copy of a model has the same name, and someone may have
edited its code, so each load imports the code afresh. Encoders that were loaded before keep
working, because functions hold on to the modules that they come from.

Separate from `encoder_model.py`, because running this file registers the model with MLflow.
"""

import importlib.util
import sys
from pathlib import Path

from mlflow.models import set_model


def _import_package(folder: Path) -> str:
    """Imports the package in a folder, replacing one of the same name; returns the name."""
    name = folder.name
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[module]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return name


(CODE,) = Path(__file__).with_name("code").glob("xkd_*")
set_model(
    importlib.import_module(
        f"{_import_package(CODE)}.pipelines.models.encoder_model"
    ).EncoderModel()
)
