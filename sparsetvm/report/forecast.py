"""What `inspect --what-if` prints: a row per pattern, then what each layer would gain and lose."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from sparsetvm.core.results import InspectReport, LayerForecast, PatternForecast
from sparsetvm.report.table import factor, make_table, percent

_PER_TABLE = 3  # patterns that fit beside name, shape and share
_COLUMNS = (
    "what if",
    ">zeros",
    ">speed-up",
    ">of layers",
    ">kernels",
    ">L1 lost",
    ">L2 lost",
    ">(unstructured)",
    ">measured",
)


def forecast_lines(report: InspectReport) -> Iterator[Table | str]:
    """Tables and lines; nothing when no pattern was asked for."""
    if not report.what_if:
        return
    yield make_table(_COLUMNS, [_pattern_row(forecast) for forecast in report.what_if], fold=("what if",))
    for at in range(0, len(report.what_if), _PER_TABLE):
        yield _layers(report.what_if[at : at + _PER_TABLE])
    yield "each layer: speed-up over dense, share of its L2 norm removed (- where it was not pruned);"
    yield "from tuning records where marked *, else from the roofline. share: of the layers' dense time"
    for forecast in report.what_if:
        for note in forecast.notes:
            yield f"{forecast.pattern}: {note}"
    yield "weights go by magnitude and are not trained again; docs/cli.md says how good the prediction is"


def _pattern_row(forecast: PatternForecast) -> tuple[str, ...]:
    return (
        forecast.pattern,
        percent(forecast.sparsity),
        factor(forecast.speedup),
        factor(forecast.layers_speedup),
        str(forecast.kernels),
        _whole(forecast.l1_removed),
        _whole(forecast.l2_removed),
        f"{_whole(forecast.l1_removed_unstructured)}, {_whole(forecast.l2_removed_unstructured)}",
        _whole(forecast.from_records),
    )


def _layers(forecasts: list[PatternForecast]) -> Table:
    first = forecasts[0]
    rows = [
        (
            layer.name,
            layer.shape,
            _whole(layer.share),
            *(_cell(forecast.layers[at]) for forecast in forecasts),
        )
        for at, layer in enumerate(first.layers)
    ]
    columns = ("layer", "workload", ">share", *(f">{forecast.pattern}" for forecast in forecasts))
    return make_table(columns, rows, fold=("layer", *(forecast.pattern for forecast in forecasts)))


def _cell(layer: LayerForecast) -> str:
    mark = "*" if layer.source == "records" else ""
    gain = "gone" if layer.speedup is None else f"{layer.speedup:.1f}x{mark}"
    return f"{gain} {_whole(layer.l2_removed)}" if layer.pruned else f"{gain} -"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"
