import time

from dysharp_env.simulator import warmup


class FakeKernel:
    signatures = ()

    def __init__(self, seconds: float):
        self.seconds = seconds

    def compile(self, signature: tuple) -> None:
        time.sleep(self.seconds)


def test_only_a_long_compilation_is_announced(monkeypatch):
    for seconds, announced in ((0.3, [warmup.NOTICE]), (0.0, [])):
        lines: list[str] = []
        monkeypatch.setattr(warmup, "advance", FakeKernel(seconds))
        warmup.ensure_compiled(lines.append, patience_s=0.1)
        time.sleep(0.15)
        assert lines == announced


def test_it_compiles_what_the_engine_calls():
    from dysharp_env.simulator.kernel.loop import advance

    warmup.ensure_compiled(print)
    signatures = len(advance.signatures)
    warmup.ensure_compiled(print)
    from dysharp_env.schedules import load_schedule, simulate
    from dysharp_env.workload import ScenarioSpec

    scenario = ScenarioSpec(gpus=2, tokens=2).build()
    simulate(scenario.system, scenario.draw(0), load_schedule("deepep"))
    assert len(advance.signatures) == signatures == 1
