"""The embedded PostgreSQL: long paths, restarts, and nothing reachable from outside."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from include.local.postgres import PostgresServer, running_postgres, start_postgres


@pytest.mark.parametrize("name", ["with blanks and 'quotes'", "long-" * 30])
def test_any_path_will_do_and_data_stays(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for expected in ([], [(1,)]):
        with (
            running_postgres(folder / "data", folder / "log") as server,
            psycopg.connect(server.conninfo("sift"), autocommit=True) as connection,
        ):
            connection.execute("create table if not exists kept (n integer)")
            assert connection.execute("select n from kept").fetchall() == expected
            connection.execute("insert into kept values (1)")
        assert server.process is not None and server.process.poll() is not None


def test_it_listens_on_no_network_address(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.conninfo("postgres")) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert connection.execute("show unix_socket_permissions").fetchone() == ("0700",)


def test_a_broken_cluster_is_reported_with_its_log(tmp_path: Path) -> None:
    with running_postgres(tmp_path / "data", tmp_path / "log"):
        pass
    (tmp_path / "data" / "postgresql.conf").write_text("no_such_setting = on\n")
    with pytest.raises(RuntimeError, match="no_such_setting"):
        start_postgres(tmp_path / "data", tmp_path / "log")
