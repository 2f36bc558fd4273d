"""The one call behind the command line, papermill and an interactive cell."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from perfkit import config as configuration
from perfkit.bundle import Bundle
from perfkit.display.progress import progress
from perfkit.errors import BundleError
from perfkit.report.run import Run


def run(
    profile: str = "standard",
    scale: str = "",
    seed: int = 1,
    rtt_ms: float = 0.0,
    postgres: int = 0,
    bundle: str | Path = "",
    reports: str | Path = "",
    config: str | Path = "",
    arms: tuple[str, ...] = (),
    scenarios: tuple[str, ...] = (),
    connect_rtts: int = 6,
) -> Run:
    """Measure before and after into a new bundle, or open the one given.

    Empty values mean the configuration's own.

    Raises PerfkitError: UsageError for a parameter, Interrupted when the user stopped it.
    """
    if bundle:
        return Run(Bundle.open(Path(bundle)))
    from perfkit.experiment import measure  # rendering a bundle needs neither
    from perfkit.selection import Options, Selection

    options = Options(
        profile, scale, seed, rtt_ms, connect_rtts, postgres, tuple(arms), tuple(scenarios), str(config)
    )
    chosen = Selection(configuration.load(Path(config) if config else None), options)
    with progress() as say:
        return Run(measure(chosen, new_folder(reports, profile), say))


def new_folder(reports: str | Path, profile: str) -> Path:
    """A new folder for a run: UTC time and profile, under `reports`. Raises BundleError."""
    parent = Path(reports) if reports else configuration.ROOT / "reports"
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{profile}"
    for path in [parent / name, *(parent / f"{name}-{n}" for n in range(2, 100))]:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be created ({error.strerror}); expected a writable folder"
            ) from None
        return path
    raise BundleError(f"{parent}: a hundred runs began this second; expected fewer")
