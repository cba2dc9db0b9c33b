"""Ctrl-C while Ray Train fits: the workers save the last step and stop."""

import logging
import threading
from collections.abc import Callable

from pipelines.training.outcome import TrainOutcome

logger = logging.getLogger(__name__)


def fit_unless_interrupted(
    fit: Callable[[], TrainOutcome], ask_to_stop: Callable[[], object]
) -> TrainOutcome:
    """Fits in a thread, because Ray Train replaces the handler of Ctrl-C in the main thread.

    The first interrupt asks the workers to stop and waits for them. A second one does not wait.
    """
    outcomes: list[TrainOutcome] = []
    errors: list[BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            outcomes.append(fit())
        except BaseException as error:  # re-raised in the main thread
            errors.append(error)
        finally:
            is_over.set()

    thread = threading.Thread(target=run, daemon=True, name="fit")
    try:
        thread.start()
        # Not `Thread.join`: after an interrupt, Python 3.11 considers the thread finished.
        is_over.wait()
    except KeyboardInterrupt as interrupt:
        logger.warning("stopping after this step, with a checkpoint; once more stops at once")
        ask_to_stop()
        is_over.wait()
        if outcomes and outcomes[0].is_interrupted_in_order:
            raise type(interrupt)(outcomes[0].summary_text()) from None
    if errors:
        raise errors[0]
    return outcomes[0]
