"""The parser of a job's command line, and the text of `xkd JOB --help`."""

import argparse
import difflib
import textwrap
from collections.abc import Iterable, Iterator
from typing import NoReturn

from pipelines.config.base import JobConfig
from pipelines.config.describe import Setting, section_description, setting_descriptions
from ray_jobs.cli.configurations import configuration_names
from ray_jobs.cli.jobs import JobSummary

_WIDTH = 100


def make_parser(job: JobSummary, schema: type[JobConfig]) -> argparse.ArgumentParser:
    """Returns the parser of a job's command line, whose help describes all settings."""
    parser = _Parser(
        prog=f"xkd {job.name}",
        description=job.about,
        epilog=_settings_help(job, schema),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = f"{job.media.upper()} | CONFIG" if job.media else "CONFIG"
    names = ", ".join(configuration_names(job.name)) or "none"
    parser.add_argument(
        "config",
        nargs="?",
        metavar=what,
        help=f"a YAML file or a short name ({names})".replace("%", "%%"),
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar=f"[{job.target.upper()}] key=value" if job.target else "key=value",
        help="settings that override the file's",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved settings and what would be read and written, and do nothing",
    )
    parser.add_argument("--verbose", action="store_true", help="show the log as well")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line, like all mistakes of a job."""

    def error(self, message: str) -> NoReturn:
        """Exits with the mistake and the nearest option."""
        unknown = message.rpartition(" ")[2]
        nearest = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"see {self.prog} --help"
        self.exit(2, f"{self.prog.removeprefix('xkd ')}: {message}; {hint}\n")


def missing_configuration(job: JobSummary) -> str:
    """Returns the message for a command line without arguments."""
    names = configuration_names(job.name)
    what = f"the {job.media} or a configuration" if job.media else "a configuration"
    example = f"xkd {job.name} {f'/my/{job.media}' if job.media else names[0]}"
    if job.target:
        first = f"/my/{job.media}" if job.is_path else "NAME@ALIAS"
        example = f"xkd {job.name} {first} FOLDER"
    elif not job.is_path:
        example = f"xkd {job.name} NAME@ALIAS"
    known = f"; short names: {', '.join(names)}" if names else ""
    return f"{what} is missing, as in `{example}`{known}; see xkd {job.name} --help"


def _settings_help(job: JobSummary, schema: type[JobConfig]) -> str:
    """Describes all settings of a job: the most common ones, then the rest by section."""
    settings = list(setting_descriptions(schema))
    # The settings of all jobs may change anyway.
    is_resumable = any(
        setting.may_change and not setting.name.startswith(("tracking.", "ray."))
        for setting in settings
    )
    lines = ["name (default) meaning; required settings come from the file or the command line"]
    if is_resumable:
        lines.append("may change: may differ when a run continues")
    first = [setting for setting in settings if setting.name in job.first]
    first.sort(key=lambda setting: job.first.index(setting.name))
    lines += ["", "most common settings:", *_entries(first, is_resumable)]
    rest = (setting for setting in settings if setting.name not in job.first)
    for section, members in _by_section(rest):
        lines += ["", _heading(section, schema), *_entries(members, is_resumable)]
    return "\n".join(lines)


def _by_section(settings: Iterable[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    """Groups settings by section; those at the top of the file come first."""
    sections: dict[str, list[Setting]] = {"": []}
    for setting in settings:
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    yield from ((name, members) for name, members in sections.items() if members)


def _heading(section: str, schema: type[JobConfig]) -> str:
    if not section:
        return "other settings:"
    about = section_description(schema, section).partition(". ")[0]  # its first sentence
    return f"{section}: {about}".rstrip(" :") + ("" if about else ":")


def _entries(settings: Iterable[Setting], is_resumable: bool) -> list[str]:
    return [
        textwrap.fill(
            f"{setting.name} ({_default(setting, is_resumable)}) {setting.meaning}".rstrip(),
            width=_WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
        for setting in settings
    ]


def _default(setting: Setting, is_resumable: bool) -> str:
    is_marked = is_resumable and setting.may_change
    return f"{setting.default}; may change" if is_marked else setting.default
