"""What the `firebolt` command left behind, and what a refusal looks like."""


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr that has all `words`, nothing on stdout."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("firebolt: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    for word in words:
        assert word in result.err
