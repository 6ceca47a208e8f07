"""The table of jobs and an engine for SQLite or PostgreSQL. Knows nothing of what is asked of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from videomar.errors import InputError

METADATA = sa.MetaData()
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("client", sa.String(80), nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("sampling", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("fps", sa.Double, nullable=False),
    sa.Column("frames", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("given", sa.Integer, nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("remix_of", sa.String(64)),
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("worker", sa.String(80)),
    sa.Column("lease_until", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("parked", sa.Integer, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, so that a page after a deleted job is still right
)
# A server that stands still in the middle of a transaction must not keep the others from its rows.
_POSTGRESQL = "-c idle_in_transaction_session_timeout=10s"


def engine(url: str) -> sa.Engine:
    """A database for jobs, its table made if it is not there; raises InputError when it cannot be reached."""
    try:
        address = sa.engine.make_url(url)
        if address.drivername in ("postgres", "postgresql"):
            address = address.set(drivername="postgresql+psycopg")
        if address.get_backend_name() == "sqlite":
            made = sa.create_engine(address)
            _prepare_sqlite(made)
        else:
            made = sa.create_engine(address, pool_pre_ping=True, connect_args={"options": _POSTGRESQL})
        METADATA.create_all(made)
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        shown = sa.engine.make_url(url).render_as_string(hide_password=True) if "://" in url else "the database"
        why = str(error).splitlines()[0]
        raise InputError(
            f"{shown} cannot be used ({why}), expected sqlite:///FILE or postgresql://...; check address, rights "
            "and driver (pip install 'videomar[postgres]')"
        ) from None
    return made


def _prepare_sqlite(made: sa.Engine) -> None:
    @sa.event.listens_for(made, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # this module says when a transaction begins
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=60000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(made, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes could not be upgraded beside another writer. What only reads
        # has none, and waits for nobody.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
