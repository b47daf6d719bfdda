"""The steps of the offline methods on eight devices; beside tests/test_sharding.py, which runs the
other cases, so that two test processes share the work."""


def test_offline_methods_on_eight_devices(on_eight_devices) -> None:
    on_eight_devices("cases_offline_steps.py")
