"""Files that are there whole or not at all, through links, on devices, with their mode."""

import os
import stat
import subprocess
import sys

import pytest

from esgd_tf._files import folder_when_whole, let_be, replaced_when_whole, sweep


def write(path, text):
    with replaced_when_whole(path) as partial:
        partial.write_text(text)


def dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_new_file_a_replaced_one_and_a_failure(tmp_path):
    path = tmp_path / "x.json"
    write(path, "one")
    write(path, "two")
    with pytest.raises(ZeroDivisionError), replaced_when_whole(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["x.json"]  # noqa: PTH208


def test_the_mode_is_kept(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("one")
    for mode in (0o600, 0o640, 0o666):
        path.chmod(mode)
        write(path, "two")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_kept(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("one")
    os.chown(path, 1234, 5678)
    write(path, "two")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "x.json", tmp_path / "link.json"
    link.symlink_to(target)
    for text in ("where the link led to nothing", "and once more"):
        write(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_a_link_that_leads_to_itself_is_an_error_with_its_name(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="link") as caught:
        write(link, "x")
    assert caught.value.filename == str(link)


def test_devices_and_pipes_are_written_to(null_device, tmp_path):
    device = null_device.stat()
    link = tmp_path / "link"
    link.symlink_to(null_device)
    for path in (link, null_device):
        write(path, "x")
    after = null_device.stat()
    assert stat.S_ISCHR(after.st_mode)
    assert (after.st_ino, after.st_mode) == (device.st_ino, device.st_mode)
    assert link.is_symlink()

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, "through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_in_a_file_gets_both(tmp_path):
    """`--json /dev/stdout > out`: a rename would take the file away from under the shell."""
    code = (
        "from pathlib import Path\n"
        "from esgd_tf._files import replaced_when_whole\n"
        "print('before')\n"
        "with replaced_when_whole(Path('/dev/stdout')) as partial:\n"
        "    partial.write_text('numbers\\n')\n"
        "print('after')\n"
    )
    with (tmp_path / "out").open("ab") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nnumbers\nafter\n"


def test_two_names_of_one_file_keep_their_modes_apart(tmp_path):
    """A link to the best checkpoint under the name of the last does not change its mode."""
    best, last = tmp_path / "best", tmp_path / "last"
    best.write_text("best")
    last.write_text("last")
    last.chmod(0o600)
    mode = best.stat().st_mode
    let_be(last, best)
    assert last.samefile(best)
    assert best.stat().st_mode == mode


def test_what_dead_processes_left_of_a_file_is_swept_by_the_next(tmp_path):
    dead, path = dead_process(), tmp_path / "x.json"
    gone = [tmp_path / f".partial-{dead}-x.json", tmp_path / f".old-{dead}-x.json"]
    kept = [tmp_path / f".partial-{dead}-y.json", tmp_path / f".partial-{os.getppid()}-x.json",
            tmp_path / ".partial-notes"]  # fmt: skip
    for each in (*gone, *kept):
        each.write_text("left")
    path.write_text("old")
    write(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in [path, *kept])


def test_the_old_folder_is_kept_where_nothing_took_its_place(tmp_path):
    """A crash between the two renames leaves it as all that there is."""
    dead, path = dead_process(), tmp_path / "network"
    old = tmp_path / f".old-{dead}-network"
    old.mkdir()
    with pytest.raises(ZeroDivisionError), folder_when_whole(path) as partial:
        partial.mkdir()
        raise ZeroDivisionError
    assert old.is_dir()
    with folder_when_whole(path) as partial:
        partial.mkdir()
    with folder_when_whole(path) as partial:
        partial.mkdir()
    assert os.listdir(tmp_path) == ["network"]  # noqa: PTH208


def test_sweeping_a_folder(tmp_path):
    (tmp_path / ".partial-1-folder" / "within").mkdir(parents=True)
    (tmp_path / ".partial-2-file").write_text("left")
    (tmp_path / ".partial-3-link").symlink_to(tmp_path / "keep")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").write_text("kept")
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["keep"]  # noqa: PTH208
    assert (tmp_path / "keep" / "file").exists()
