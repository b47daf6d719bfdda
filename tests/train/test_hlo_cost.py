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


# Lines of programs that XLA made for H100s (jax 0.10.2): a loop whose bound is in a fusion, two
# all-gathers combined in one, products by Triton and by cuBLAS, and attention by cuDNN.
GPU_PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%gemm_fusion_dot.4_computation (parameter_0: bf16[4,256,256], parameter_1: bf16[256,4,2048]) -> f32[4,256,2048] {
  %parameter_0 = bf16[256,4,256]{2,1,0} parameter(0)
  %parameter_1 = bf16[4,256,2048]{2,1,0} parameter(1)
  ROOT %dot.8 = f32[4,256,2048]{2,1,0} dot(%parameter_0, %parameter_1), lhs_batch_dims={1}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

%region_2.3_spmd (arg: (s32[], bf16[256,2048])) -> (s32[], bf16[256,2048]) {
  %arg = (s32[], bf16[256,2048]{1,0}) parameter(0)
  %get-tuple-element.56 = bf16[1024,2048]{1,0} get-tuple-element(%arg), index=1
  %get-tuple-element.65 = bf16[256,1024]{1,0} get-tuple-element(%arg), index=2
  %all-gather-start = ((bf16[256,2048]{1,0}, bf16[256,2048]{1,0}), (bf16[1024,2048]{1,0}, bf16[1024,2048]{1,0})) all-gather-start(%bitcast.124, %bitcast.125), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/while/body/dot_general"}
  %all-gather-done = (bf16[1024,2048]{1,0}, bf16[1024,2048]{1,0}) all-gather-done(%all-gather-start)
  %gemm_fusion_dot.4 = f32[4,256,2048]{2,1,0} fusion(%bitcast.35.0, %bitcast.34.0), kind=kCustom, calls=%gemm_fusion_dot.4_computation
  %custom-call.2 = (bf16[256,2048]{1,0}, s8[4194304]{0}) custom-call(%get-tuple-element.65, %get-tuple-element.56), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %all-reduce-start = bf16[256,1024]{1,0} all-reduce-start(%loop_reduce_fusion), channel_id=3, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone, metadata={op_name="jit(f)/while/body/dot_general"}
}

%fused_compare (param_0: s32[]) -> pred[] {
  %param_0 = s32[] parameter(0)
  %constant_11_clone_2 = s32[] constant(7)
  ROOT %lt.4.1 = pred[] compare(%param_0, %constant_11_clone_2), direction=LT
}

%region_3.4_spmd (arg.1: (s32[], bf16[256,2048])) -> pred[] {
  %get-tuple-element.36.0 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %loop_compare_fusion = pred[] fusion(%get-tuple-element.36.0), kind=kLoop, calls=%fused_compare
}

ENTRY %main.6_spmd (param.4: bf16[256,1024]) -> bf16[256,1024] {
  %while.17 = (s32[], bf16[256,2048]{1,0}) while(%tuple.16), condition=%region_3.4_spmd, body=%region_2.3_spmd
  %bwd = (bf16[4,8,256,64]{3,1,2,0}, bf16[4,2,256,64]{3,1,2,0}, bf16[4,2,256,64]{3,1,2,0}, u8[0]{0}) custom-call(%q.1, %k.1, %k.1), custom_call_target="__cudnn$fmhaSoftmaxBackward"
}
"""  # noqa: E501


def test_a_bound_inside_a_fusion_and_a_tuple_of_gathers():
    program = hlo_cost.read_program(GPU_PROGRAM)
    assert hlo_cost.wire_bytes(program) == {
        "all-gather bf16 dot_general": 7 * 2 * 1024 * 2048 * 2 * 3 / 4,  # both of 4 devices
        "all-reduce bf16 dot_general": 7 * 2 * 256 * 1024 * 2 / 2,  # its result is no tuple
    }


def test_products_count_in_fusions_and_calls_as_often_as_their_loop_runs():
    program = hlo_cost.read_program(GPU_PROGRAM)
    # Triton sums 1,024 terms in 4 parts; cuBLAS at once.
    assert hlo_cost.executed_flops(program) == 7 * 2 * (2 * 256 * 2048 * 1024)


def test_the_workspace_of_attention_in_cudnn():
    program = hlo_cost.read_program(GPU_PROGRAM)
    rows = 4 * 256 * 8
    assert hlo_cost.cudnn_workspace(program, more=False) == rows * (4 + 4 * 64 + 4 * 64)
    assert hlo_cost.cudnn_workspace(program, more=True) == rows * (4 + 3 * 4 * 64)
    equal = GPU_PROGRAM.replace("bf16[4,2,256,64]", "bf16[4,8,256,64]")
    assert hlo_cost.cudnn_workspace(hlo_cost.read_program(equal), more=False) == rows * 260


def test_an_asynchronous_start_with_counters_behind_its_results():
    line = (
        "  %start = (f32[4,8], f32[16,8], u32[], u32[]) all-gather-start(%x), channel_id=9, "
        "replica_groups={{0,1,2,3}}\n  ROOT %done"
    )
    program = hlo_cost.read_program(PROGRAM.replace("  ROOT %done", line, 1))
    assert hlo_cost.wire_bytes(program)["all-gather f32 ?"] == 16 * 8 * 4 * 3 / 4
