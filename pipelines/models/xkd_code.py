"""Imports the code that lies beside this file, under its own name, for whoever loads an encoder.

    MODEL/xkd_code.py                                    this file
    MODEL/code/xkd_1a2b3c4d/pipelines/models/...         the code of this encoder alone
    MODEL/code/xkd_1a2b3c4d/xkd_core/...

The code has a package name of its own, from a hash of what the model holds. So encoders of several
versions run in one process, each with its own code, beside a checkout of this project and beside a
package `pipelines` of the user's. A second copy of a model has the same name, and someone may have
edited its code, so each load imports the code afresh. Encoders that were loaded before keep
working, because functions hold on to the modules that they come from.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_code(folder: Path, module: str) -> ModuleType:
    """Imports a module of the code of a model, replacing a package of the same name.

    Args:
        folder: The model.
        module: Its name in the package, such as `pipelines.models.encoder_module`.
    """
    (code,) = (folder / "code").glob("xkd_*")
    name = code.name
    for loaded in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[loaded]
    spec = importlib.util.spec_from_file_location(
        name, code / "__init__.py", submodule_search_locations=[str(code)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.{module}")
