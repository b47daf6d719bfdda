"""Reading a compiled program: loops count as often as they run, collectives by a ring's bytes."""

import pytest

from gapo_jax.plan import cost as hlo_cost

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
PROGRAM = f"""HloModule jit_f, num_partitions=8

%body (p: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {{
  %p = (s32[], bf16[16,8]) parameter(0)
  %w = bf16[4,8]{{1,0}} fusion(%p), kind=kLoop, calls=%fused, {CYCLES % 10}
  %gather = bf16[16,8]{{1,0:T(8,128)}} all-gather(%w), channel_id=3, replica_groups=[2,4]<=[8], \
dimensions={{0}}, metadata={{op_name="jit(f)/while/body/closed_call/attn/q/dot_general"}}
  %again = bf16[16,8]{{1,0}} all-gather(%w), channel_id=3, replica_groups=[2,4]<=[8]
  ROOT %t = (s32[], bf16[16,8]) tuple(%p, %gather), {CYCLES % 5}
}}

%cond (p: (s32[], bf16[16,8])) -> pred[] {{
  %c = s32[] constant(12)
  ROOT %lt = pred[] compare(%p, %c), direction=LT
}}

%sum (a: f32[], b: f32[]) -> f32[] {{
  ROOT %add = f32[] add(%a, %b), {CYCLES % 1000}
}}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {{
  %x = f32[4,8]{{1,0}} parameter(0)
  %loop = (s32[], bf16[16,8]) while(%x), condition=%cond, body=%body
  %start = (f32[4,8], f32[4,8]) all-reduce-start(%x), channel_id=4, \
replica_groups={{{{0,1}},{{2,3}},{{4,5}},{{6,7}}}}, to_apply=%sum, \
metadata={{op_name="jit(f)/grad/sum"}}
  %scattered = f32[1,8] reduce-scatter(%x), channel_id=5, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {{'axis_0'}}, to_apply=%sum
  ROOT %done = f32[4,8] all-reduce-done(%start), {CYCLES % 7}
}}
"""


def test_loops_count_as_often_as_they_run():
    program = hlo_cost.read_program(PROGRAM)
    assert hlo_cost.cycles(program) == 7 + 12 * (10 + 5)
    assert hlo_cost.cycles(program, "body") == 15


def test_a_turn_of_a_loop():
    program = hlo_cost.read_program(PROGRAM)
    assert hlo_cost.loop_cycles(program, 12) == 15
    assert hlo_cost.loop_cycles(program, 11) == 0


def test_what_devices_do_together_and_how_often():
    found = hlo_cost.collectives(hlo_cost.read_program(PROGRAM))
    assert [(opcode, item.shape[:6], times) for opcode, item, times in found] == [
        ("all-gather", "bf16[1", 12),
        ("all-reduce", "(f32[4", 1),
        ("reduce-scatter", "f32[1,", 1),
    ]


def test_bytes_on_the_wire_by_cause():
    found = hlo_cost.wire_bytes(hlo_cost.read_program(PROGRAM))
    assert found == {
        "all-gather bf16 attn/q/dot_general": 12 * 16 * 8 * 2 * 3 / 4,  # 12 turns, 4 devices
        "all-reduce f32 grad/sum": 2 * 4 * 8 * 4 / 2,  # pairs of devices
        "reduce-scatter f32 ?": 1 * 8 * 4 * 3,  # 4 along axis_0
    }


def test_a_known_trip_count_comes_first():
    line = 'while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    program = hlo_cost.read_program(PROGRAM.replace("while(%x), condition=%cond, body=%body", line))
    assert hlo_cost.cycles(program) == 7 + 3 * 15


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="wanted the text of an HLO program"):
        hlo_cost.read_program("nothing")
