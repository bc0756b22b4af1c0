"""Grafana's dashboards, as code. From the repository's root, after changing it:

python deploy/grafana/build.py      # writes deploy/grafana/dashboards/*.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, text, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
"""As provisioning/datasources names it."""
FOLDER = Path(__file__).with_name("dashboards")
_WIDTH = 24


@dataclass(frozen=True)
class Graph:
    """A panel of lines."""

    title: str
    queries: dict[str, str]
    """Legend to PromQL."""
    unit: str = "short"
    says: str = ""
    stacked: bool = False
    shares: bool = False
    """Stacked to 100 %."""
    logarithmic: bool = False
    whole: bool = False
    """Counts: an axis without halves, on which one is little."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Board:
    """A dashboard: how to read it, and rows of panels."""

    name: str
    title: str
    reading: str
    rows: dict[str, list[Graph]]
    shown: str = "1h"
    """How much of the past."""


def _quantiles(metric: str) -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram, over five minutes."""
    return {
        f"p{round(100 * share)}": (
            f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket[5m])))"
        )
        for share in (0.5, 0.95, 0.99)
    }


def _sizes(metric: str) -> dict[str, str]:
    """Mean and 95th percentile of a histogram of whole numbers, over five minutes."""
    mean = f"sum(rate({metric}_sum[5m])) / sum(rate({metric}_count[5m]))"
    # Between the bounds of its buckets Prometheus interpolates: half of a batch of one.
    quantile = f"ceil(histogram_quantile(0.95, sum by (le) (rate({metric}_bucket[5m]))))"
    return {"mean": mean, "p95": quantile}


def _trainer(*names: str) -> dict[str, str]:
    """Scalars of an iteration, by what they are called in docs/metrics.md."""
    return {name.replace("_", " "): f"vlarl_trainer_{name}" for name in names}


TRAINING = Board(
    "training",
    "Training",
    "Is it learning? **Success** and return should rise, episodes get shorter, entropy fall slowly "
    "(5.55 nats know nothing) and KL stay small. A step is an iteration. The **log-prob gap** is "
    "the largest difference between policy server and trainer for the same action: at its bound "
    "(1e-4 in float32) the two don't compute the same policy, and the run stops.",
    {
        "Success": [
            Graph(
                "Success",
                {
                    "sampled, in training": "vlarl_trainer_success_rate",
                    "greedy, official states": "vlarl_trainer_evaluation_success_rate",
                },
                "percentunit",
                low=0,
                high=1,
            ),
            Graph(
                "Greedy success by task",
                {"task {{task}}": "vlarl_trainer_task_evaluation_success_rate"},
                "percentunit",
                low=0,
                high=1,
            ),
            Graph("Return", _trainer("episode_return"), says="Mean sum of rewards of an episode."),
            Graph("Episode length", _trainer("episode_actions"), says="Policy actions.", low=0),
        ],
        "Policy and critic": [
            Graph("Entropy", _trainer("entropy"), says="Nats a token."),
            Graph(
                "KL(old || new)",
                {
                    "mean of the mini-batches": "vlarl_trainer_approximate_kl",
                    "largest of a mini-batch": "vlarl_trainer_largest_kl",
                    "from where training began": "vlarl_trainer_reference_kl",
                },
                says="Nats. The algorithm's kl_stop bounds the largest.",
                low=0,
            ),
            Graph("Clip fraction", _trainer("clip_fraction"), "percentunit", low=0),
            Graph("Gradient norm", _trainer("grad_norm"), says="Before clipping.", low=0),
            Graph(
                "Learning rate",
                _trainer("learning_rate"),
                "sci",
                says="Of the policy's last step: the schedule's, and less after each rollback.",
                low=0,
            ),
            Graph("Value loss", _trainer("value_loss"), low=0),
            Graph(
                "Explained variance",
                _trainer("explained_variance"),
                "percentunit",
                says="Of the returns, before the critic learns from them. Below 0: harmful.",
                low=-1,
                high=1,
            ),
        ],
        "Groups (GRPO, RLOO)": [
            Graph(
                "What became of them",
                {
                    "kept": "vlarl_trainer_groups_kept",
                    "too many successes": "vlarl_trainer_groups_dropped_success",
                    "too few successes": "vlarl_trainer_groups_dropped_failure",
                    "void": "vlarl_trainer_groups_void",
                },
                says="Dropped groups are ordered anew, on other placements. Of void ones fewer "
                "than two episodes came back.",
                stacked=True,
                whole=True,
                low=0,
            ),
            Graph("Orders of a group", _trainer("group_attempts"), low=0),
            Graph(
                "Episodes for one learned from",
                _trainer("episodes_per_learned"),
                says="1: none was dropped.",
                low=0,
            ),
            Graph(
                "Deviation of returns in a group",
                _trainer("group_deviation"),
                says="Mean of the groups kept.",
                low=0,
            ),
        ],
        "Curriculum": [
            Graph(
                "Chance of a task",
                {"task {{task}}": "vlarl_trainer_task_probability"},
                "percentunit",
                stacked=True,
                low=0,
                high=1,
            ),
            Graph(
                "Success that the curriculum goes by",
                {"task {{task}}": "vlarl_trainer_task_success"},
                "percentunit",
                low=0,
                high=1,
            ),
        ],
        "Parity": [
            Graph(
                "Log-prob gap",
                {
                    "largest": "vlarl_trainer_logprob_gap",
                    "99.9 %": "vlarl_trainer_logprob_gap_p999",
                    "mean": "vlarl_trainer_logprob_gap_mean",
                    "bound": "vlarl_trainer_logprob_gap_bound",
                    "k3 of whole actions": "vlarl_trainer_start_k3",
                },
                "sci",
                says="Nats. The bound is that of 99.9 %. All are from before the first step.",
                logarithmic=True,
            ),
            Graph(
                "Outside the clip band before the first step",
                _trainer("start_outside_clip"),
                "percentunit",
                says="Share of ratios. 0 where no older version acted.",
                low=0,
            ),
            Graph(
                "Versions behind the newest",
                {
                    "{{instance}}": "scalar(max(vlarl_policy_weights_version))"
                    " - vlarl_policy_weights_version",
                },
                says="Replicas that stay behind act with old weights.",
                whole=True,
                low=0,
            ),
            Graph("Stale actions", _trainer("stale_actions"), "percentunit", low=0, high=1),
        ],
    },
    shown="3h",
)

THROUGHPUT = Board(
    "throughput",
    "Throughput",
    "Where does the time go? If **simulators** wait for the policy more than they simulate, add "
    "policy replicas or larger batches; if the episodes stream stays full, add env pods; if it is "
    "empty while the trainer is in its rollout, the last episodes of the batch are being waited "
    "for. Rewards should never be waited for.",
    {
        "Rates": [
            Graph(
                "Control steps",
                {"all simulators": "sum(rate(vlarl_env_control_steps_total[$__rate_interval]))"},
                "suffix:/s",
                low=0,
            ),
            Graph(
                "Actions",
                {"all replicas": "sum(rate(vlarl_policy_actions_total[$__rate_interval]))"},
                "suffix:/s",
                low=0,
            ),
            Graph(
                "Actions computed together",
                _sizes("vlarl_policy_batch_size"),
                low=0,
            ),
            Graph(
                "Where simulators spend their time",
                {
                    "physics": "sum(rate(vlarl_env_physics_seconds_total[$__rate_interval]))",
                    "rendering": "sum(rate(vlarl_env_render_seconds_total[$__rate_interval]))",
                    "waiting for the policy": "sum("
                    "rate(vlarl_env_policy_wait_seconds_total[$__rate_interval]))",
                },
                shares=True,
            ),
        ],
        "Queue": [
            Graph(
                "Entries that wait",
                {"{{stream}}": "vlarl_queue_waiting"},
                stacked=True,
                whole=True,
                low=0,
            ),
            Graph(
                "Entries in work",
                {"{{stream}}": "vlarl_queue_in_work"},
                stacked=True,
                whole=True,
                low=0,
            ),
        ],
        "Iterations": [
            Graph(
                "Seconds by phase",
                {
                    name: f"vlarl_trainer_{name}_seconds"
                    for name in ("rollout", "learning", "checkpoint", "publish")
                },
                "suffix:s",
                stacked=True,
                low=0,
            ),
            Graph(
                "Waiting for rewards",
                _trainer("waiting_for_reward_seconds"),
                "s",
                says="From the end of the last episode to the last reward.",
                low=0,
            ),
            Graph(
                "Publishing weights",
                {
                    "until all replicas serve them": "vlarl_trainer_publish_seconds",
                    "longest pause": "vlarl_trainer_publish_pause_seconds",
                },
                "s",
                says="In the pause a replica starts no action.",
                low=0,
            ),
        ],
    },
)

REWARD = Board(
    "reward",
    "Reward",
    "Is the process reward earned? Successes should get more of it than failures, and its "
    "**correlation** with success stay well above 0. Where the correlation falls while the dense "
    "return rises, the policy pleases the model instead of solving tasks: look at films, lower "
    '`reward.coefficient`, or use `reward.form = "potential"`. A sum that goes with the '
    'episode\'s length pays for loitering. Empty with `reward.model = "outcome"`.',
    {
        "Against success": [
            Graph(
                "Dense return",
                {
                    "successes": "vlarl_trainer_dense_return_success",
                    "failures": "vlarl_trainer_dense_return_failure",
                    "all": "vlarl_trainer_dense_return",
                },
                says="An episode's sum, before the coefficient.",
            ),
            Graph(
                "Correlation",
                {
                    "with success": "vlarl_trainer_dense_success_correlation",
                    "with length": "vlarl_trainer_dense_length_correlation",
                },
                low=-1,
                high=1,
            ),
            Graph("Success", _trainer("success_rate"), "percentunit", low=0, high=1),
            Graph(
                "Share of all rewards that is dense",
                _trainer("dense_share"),
                "percentunit",
                low=0,
                high=1,
            ),
        ],
        "The server": [
            Graph(
                "Steps scored",
                {
                    "{{model}}, from the {{source}}": "sum by (model, source) "
                    "(rate(vlarl_reward_steps_total[$__rate_interval]))"
                },
                "suffix:/s",
                low=0,
            ),
            Graph("Scoring a batch", _quantiles("vlarl_reward_score_seconds"), "s", low=0),
            Graph("Trajectories together", _sizes("vlarl_reward_batch_trajectories"), low=0),
            Graph(
                "Unscorable",
                {
                    "from the {{source}}": "sum by (source) "
                    "(increase(vlarl_reward_failures_total[5m]))"
                },
                says="In five minutes.",
                whole=True,
                low=0,
            ),
        ],
    },
)

FLEET = Board(
    "fleet",
    "Fleet",
    "Is everybody there, and well? Replicas that are **down**, simulators that keep being replaced "
    "(`recycled` is routine), dead letters that grow, calls that fail or slow down. Latencies are "
    "the servers' own, over five minutes.",
    {
        "Replicas": [
            Graph(
                "Replicas up",
                {"{{service}}": "sum by (service) (up)"},
                stacked=True,
                whole=True,
                low=0,
            ),
            Graph(
                "Simulators",
                {"in an episode": "sum(vlarl_env_active_envs)", "up": "sum(vlarl_env_simulators)"},
                whole=True,
                low=0,
            ),
            Graph(
                "Simulators replaced",
                {"{{cause}}": "sum by (cause) (increase(vlarl_env_simulator_restarts_total[5m]))"},
                says="In five minutes.",
                whole=True,
                low=0,
            ),
            Graph(
                "Episodes ended",
                {
                    "{{driver}}, {{outcome}}": "sum by (driver, outcome) "
                    "(60 * rate(vlarl_env_episodes_total[5m]))"
                },
                "suffix:/min",
                low=0,
            ),
            Graph("Dead letters", {"episodes": "vlarl_queue_dead_letters"}, whole=True, low=0),
            Graph(
                "Failed requests to the policy",
                {"{{method}}": "sum by (method) (increase(vlarl_policy_failures_total[5m]))"},
                says="In five minutes.",
                whole=True,
                low=0,
            ),
        ],
        "Calls": [
            Graph(
                "Answers by code",
                {
                    "{{grpc_code}}": "sum by (grpc_code) "
                    "(rate(grpc_server_handled_total[$__rate_interval]))"
                },
                "reqps",
                logarithmic=True,
            ),
            Graph(
                "An action, from request to answer",
                _quantiles("vlarl_policy_request_seconds"),
                "s",
                low=0,
            ),
            Graph(
                "95th percentile by method",
                {
                    "{{grpc_method}}": "histogram_quantile(0.95, sum by (le, grpc_method) (rate("
                    "grpc_server_handling_seconds_bucket{grpc_method!~'Interact|Watch.*'}[5m])))"
                },
                "s",
                says="Without those that last as long as their caller wants.",
                logarithmic=True,
            ),
        ],
        "Machines": [
            Graph(
                "Memory",
                {"{{service}} {{instance}}": "process_resident_memory_bytes"},
                "bytes",
                says="Without the simulators, which are processes of their own.",
                low=0,
            ),
            Graph(
                "Processors",
                {"{{service}} {{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"},
                says="Cores in use.",
                low=0,
            ),
            Graph(
                "GPU memory of the trainer",
                {"rank 0": "vlarl_trainer_gpu_memory_bytes"},
                "bytes",
                low=0,
            ),
        ],
    },
)

BOARDS = (TRAINING, THROUGHPUT, REWARD, FLEET)


def graphs(board: Board) -> list[Graph]:
    """All panels with queries."""
    return [graph for row in board.rows.values() for graph in row]


def build(board: Board) -> str:
    """The dashboard as Grafana reads it."""
    made = (
        dashboard.Dashboard(f"vlarl: {board.title}")
        .uid(f"vlarl-{board.name}")
        .tags(["vlarl"])
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("vlarl").type(DashboardLinkType.DASHBOARDS).tags(["vlarl"]))
        .time(f"now-{board.shown}", "now")
        .with_panel(
            text.Panel().title("How to read it").content(board.reading).height(4).span(_WIDTH)
        )
    )
    for title, row in board.rows.items():
        made = made.with_row(dashboard.Row(title))
        for graph in row:
            made = made.with_panel(_panel(graph, _span(row)))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _span(row: Sequence[Graph]) -> int:
    return _WIDTH // (3 if len(row) % 3 == 0 else 2)


def _panel(graph: Graph, span: int) -> timeseries.Panel:
    filled = graph.stacked or graph.shares
    stacking = StackingMode.NORMAL if graph.stacked else StackingMode.NONE
    stacking = StackingMode.PERCENT if graph.shares else stacking
    by_task = any("{{task}}" in legend for legend in graph.queries)
    told_apart = len(graph.queries) > 1 or any("{{" in legend for legend in graph.queries)
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .description(graph.says)
        .datasource(SOURCE)
        .unit(graph.unit)
        .height(8)
        .span(span)
        .draw_style(GraphDrawStyle.LINE)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(30 if filled else 0)
        .stacking(common.StackingConfig().mode(stacking))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(told_apart)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if any("vlarl_trainer_" in query for query in graph.queries.values()):
        # It holds until the next iteration.
        panel = panel.line_interpolation(LineInterpolation.STEP_AFTER)
    if graph.logarithmic:
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if graph.whole:
        panel = panel.decimals(0).axis_soft_max(4)
    if by_task and not graph.stacked:
        # Grafana has five colours, and shades of them.
        dashed = DynamicConfigValue(
            id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 6]}
        )
        panel = panel.override_by_regexp("/ [5-9]$/", [dashed])
    if graph.low is not None:
        panel = panel.min(graph.low)
    if graph.high is not None:
        panel = panel.max(graph.high)
    for number, (legend, query) in enumerate(graph.queries.items()):
        target = prometheus.Dataquery().expr(query).legend_format(legend)
        panel = panel.with_target(target.ref_id(chr(ord("A") + number)).datasource(SOURCE))
    return panel


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(build(board), encoding="utf-8")


if __name__ == "__main__":
    main()
