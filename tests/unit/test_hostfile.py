"""A hostfile gives the hosts that are in it or is refused: none of them is ever lost without a word."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.launch.hostfile import read_hostfile
from configs import ConfigError


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfw1 slots=4\nw2 slots=2\n",
        b"w1 slots=4\r\nw2 slots=2\r\n",
        b"w1 slots=4\rw2 slots=2",
        b"# all\rw1 slots=4 # one\rw2 slots=2\n",
        b"w1 slots=4\r\r\nw2 slots=2\r\r\n",  # of several editors
        b"\n\n  w1\t slots=4 \t\n \t\nw2 slots=2",
        b"# all\nw1 slots=4  # the first\n\t# and\nw2 slots=2\n",
        # line ends for str.splitlines alone
        "w1 slots=4 # a\u2028b slots=9\nw2 slots=2\n# x\x0by\x85z\n".encode(),
    ],
)
def test_marks_blanks_line_ends_and_comments(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "hosts").write_bytes(data)
    assert read_hostfile(str(tmp_path / "hosts")) == {"w1": 4, "w2": 2}


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("w1:4", "; write w1 slots=4 for 4 ranks; a port belongs in launch.remote (ssh -p PORT)"),
        ("w1:4 slots=2", "; write w1 slots=4 for 4 ranks; a port belongs in launch.remote (ssh -p PORT)"),
        ("[fe80::1]:4", "; write fe80::1 slots=4 for 4 ranks; a port belongs in launch.remote (ssh -p PORT)"),
        (
            "me@w1 slots=4",
            "; a host's user belongs in launch.remote (ssh -l USER ... {host}) or in ~/.ssh/config",
        ),
        ("w1 slots = 4", ""),
        ("w1 slots= 4", ""),
        ("w1 slot=4", ""),
        ("w1 Slots=4", ""),
        ("w1 slots:4", ""),
        ("w1 slots=4 max_slots=8", ""),
        ("w1 w2", ""),
        ("w1,w2", ""),
        ("w1 4", ""),
        ("'w1' slots=4", ""),
        ("w1 slots=\u0664", ""),
        ("w\u0131 slots=4", ""),
        ("w1 slots=4#b", ""),
        ("w1#b", ""),
        ("w1\u00a0slots=4", ""),
        ("\x0c", ""),
        ("\u2003", ""),
        ("w1:", ""),
        ("localhost:", ""),
        ("w1 slots=-1", ""),
        ("w1 slots=4.0", ""),
        ("w1 slots=1e3", ""),
    ],
)
def test_a_line_that_is_not_of_the_format_is_named(tmp_path: Path, line: str, advice: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"fine slots=8\n{line}\n")
    with pytest.raises(ConfigError) as fault:
        read_hostfile(str(path))
    assert str(fault.value) == f"launch.hostfile: {path}, line 2: {line!r} must be NAME slots=RANKS{advice}"


@pytest.mark.parametrize("twin", ["W1", "w1.", "w1 slots=4"])
def test_a_host_under_two_spellings_is_one(tmp_path: Path, twin: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"w1\n{twin}\n")
    with pytest.raises(ConfigError, match=r"line 2: [wW]1\.? is there already"):
        read_hostfile(str(path))


HOSTS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True), st.integers(1, 64), min_size=1)
NOISE = [
    "\ufeff",
    "\r",
    "\t",
    " ",
    "#",
    '"',
    "'",
    ":",
    "=",
    ",",
    "\x00",
    "\x0b",
    "\u2028",
    "\u00a0",
    "@",
    "-",
    "\n",
]


@settings(deadline=None, max_examples=300)
@given(
    hosts=HOSTS,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
    blanks=st.sampled_from([" ", "\t", "  \t"]),
    code=st.sampled_from(["utf-8", "utf-16", "utf-32"]),
    noise=st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(NOISE)), max_size=2),
)
def test_a_mangled_hostfile_gives_all_its_hosts_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    hosts: dict[str, int],
    end: str,
    mark: str,
    blanks: str,
    code: str,
    noise: list[tuple[int, str]],
) -> None:
    text = mark + "".join(f"{name}{blanks}slots={slots}{end}" for name, slots in hosts.items())
    for at, what in noise:
        at %= len(text) + 1
        text = text[:at] + what + text[at:]
    path = tmp_path_factory.getbasetemp() / "mangled-hosts"
    path.write_bytes(text.encode(code))
    try:
        found = read_hostfile(str(path))
    except ConfigError as fault:
        refusal = str(fault)
        assert refusal.startswith("launch.hostfile: ")
        assert noise or (mark and code != "utf-8"), "nothing was mangled"
        return
    lost = {name: slots for name, slots in hosts.items() if found.get(name) != slots}
    told = [what for _, what in noise]
    if "#" in told:  # a comment is what its writer said; it takes no more than its own line, others one each
        assert len(lost) <= len(told)
    elif not {"-", "\n", "\r"} & set(told):  # these make another name, or one host into a line of its own
        assert lost == {}
