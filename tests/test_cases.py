"""Which tests hold what people needed elsewhere: the rows of ``cases/README.md`` in the folder of shared files.

Each row stands for its kind, and so do its tests: most make their input themselves and run without the folder.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.shared_files import SHARED, needs_shared

TESTS = Path(__file__).resolve().parent
# By number of the row: what was needed, and the tests, each as FILE::NAME below ``tests``.
CASES: dict[int, tuple[str, ...]] = {
    # Copies of running environments and engines.
    1: (
        "envs/test_copies.py::test_a_copy_plays_on_as_the_original_and_neither_notices",
        "envs/test_copies.py::test_another_process_plays_on_as_this_one_would_have",
        "envs/test_copies.py::test_a_clone_shares_what_never_changes",
        "simulator/test_clone.py::test_a_clone_equals_its_original_step_for_step",
    ),
    2: (
        "envs/test_copies.py::test_arrays_sent_beside_a_pickle_are_not_written_to",
        "envs/test_copies.py::test_what_was_handed_out_stays_the_owner_s",
        "envs/test_copies.py::test_a_pickle_of_another_version_is_refused_in_one_line",
    ),
    # Evaluation without masks.
    3: (
        "envs/test_masked_actions.py::test_the_same_schedule_by_legal_actions_is_better_wherever_one_stops",
        "envs/test_masked_actions.py::test_plain_evaluation_ranks_stalling_below_the_rule",
        "envs/test_masked_actions.py::test_it_is_warned_of_once",
    ),
    # A read-only package, and no home.
    4: (
        "test_native.py::test_folders_are_tried_in_turn",
        "test_native.py::test_where_nothing_can_be_written_every_run_compiles",
    ),
    # Ctrl-C in training, and one folder trained in twice at once.
    5: (
        "agents/training/test_interrupts.py::test_a_run_stopped_before_its_first_checkpoint_ends_as_one_that_was_not",
        "agents/training/test_interrupts.py::test_signals_that_ask_to_end_do_what_ctrl_c_does",
    ),
    6: ("agents/training/test_interrupts.py::test_one_process_at_a_time_trains_in_a_folder",),
    # Routing with tokens first, padded, with dropped slots, without the last experts, and as lines of JSON.
    7: (
        "workload/test_importers.py::test_arrays_of_ids_in_both_layouts",
        "workload/test_importers.py::test_a_trace_with_tokens_first_is_read_as_such",
        "workload/test_traces.py::test_more_layers_than_tokens_are_wondered_about",
    ),
    8: (
        "workload/test_traces.py::test_dropped_slots_stand_behind_and_padding_is_left_out",
        "workload/test_importers.py::test_padding_is_stripped_and_fewer_experts_are_kept",
        "workload/test_traces.py::test_traces_with_padding_dropped_slots_and_experts_that_nobody_chose",
    ),
    9: (
        "workload/test_traces.py::test_the_model_says_how_many_experts_where_the_file_does_not",
        "workload/test_traces.py::test_traces_with_padding_dropped_slots_and_experts_that_nobody_chose",
    ),
    10: ("workload/test_importers.py::test_logs_of_routes_in_one_file_or_several",),
    # Placements: replicas, one for each layer, and experts that the GPUs do not divide.
    11: (
        "workload/test_placement.py::test_the_expert_of_every_slot",
        "workload/test_source.py::test_tokens_are_served_by_replicas",
        "workload/test_placement.py::test_placements_that_people_had",
    ),
    12: (
        "workload/test_placement.py::test_experts_by_device",
        "workload/test_placement.py::test_which_row_is_a_layer_s",
        "workload/test_source.py::test_placements_of_layers_go_with_the_layers_of_routing",
    ),
    13: (
        "workload/test_placement.py::test_contiguous_placements_have_ceiling_and_floor_shares",
        "workload/test_placement.py::test_the_gpu_of_every_expert",
        "workload/test_source.py::test_traces_loads_and_placements_that_people_had_become_workloads",
    ),
    # Tokens of each GPU, none of some.
    14: (
        "workload/test_source.py::test_tokens_as_people_write_them",
        "workload/test_workload.py::test_tokens_live_gpu_by_gpu_and_any_gpu_may_have_none",
        "envs/test_odd_workloads.py::test_an_episode_of_any_shape_ends_and_shows_shares",
    ),
    # Models: configurations as published, experts that compute nothing, formats.
    15: ("workload/test_layer.py::test_the_config_of_a_model_hub_is_read",),
    16: (
        "workload/test_layer.py::test_a_router_may_choose_experts_that_compute_nothing",
        "workload/test_routing.py::test_experts_that_compute_nothing_leave_tokens_with_fewer",
        "workload/test_traces.py::test_choices_of_experts_that_compute_nothing_become_none",
    ),
    17: (
        "workload/test_layer.py::test_four_bits_by_hand",
        "workload/test_layer.py::test_fp8_scale_of_a_partial_block_is_whole",
    ),
    # Numbers as people write them.
    18: (
        "files/test_yaml.py::test_numbers_are_read_as_people_write_them",
        "files/test_yaml.py::test_every_file_of_settings_takes_them",
        "agents/training/test_zoo.py::test_numbers_that_yaml_takes_for_text_are_read",
    ),
    # Pictures in a notebook's process.
    19: ("commands/test_command_line.py::test_pictures_need_no_backend_and_come_after_the_table",),
    # RLlib with masks, and the table of runs in TensorBoard.
    20: (
        "envs/test_wrappers.py::test_spaces_have_the_documented_shapes",
        "agents/test_examples.py::test_rllib_with_two_workers_improves_over_random",
    ),
    21: ("agents/training/test_training.py::test_the_table_of_runs_has_settings_and_final_results",),
    # Long commands.
    22: (
        "commands/test_estimate.py::test_what_takes_long_says_how_long_first",
        "commands/test_estimate.py::test_what_would_never_end_is_refused",
        "commands/test_progress.py::test_lines_come_now_and_then_where_there_is_no_terminal",
    ),
    # GPUs of any number of SMs.
    23: ("schedules/test_schedule_spec.py::test_all_sms_are_those_that_the_gpu_has",),
    # A training that cannot start.
    24: (
        "agents/training/test_checkpoints.py::test_a_training_that_cannot_start_leaves_nothing_behind",
        "agents/training/test_training.py::test_a_mistake_is_one_line_and_leaves_nothing_behind",
    ),
    # Types of the installed package.
    25: ("agents/test_agents_as_schedules.py::test_the_wheel_carries_the_shipped_agent",),
}


@pytest.mark.parametrize("row", CASES)
def test_the_tests_of_a_row_are_there(row: int) -> None:
    for named in CASES[row]:
        path, _, name = named.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, named


@needs_shared
def test_every_row_has_tests() -> None:
    text = (SHARED / "cases" / "README.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == list(CASES)
