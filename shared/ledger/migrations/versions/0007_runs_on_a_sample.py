"""runs on a sample, which have places of their own"""

from alembic import op
import sqlalchemy as sa

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

BEFORE = {'waiting': "state = 'waiting'", 'running': "state IN ('running','retrying')"}
AFTER = {
    'waiting': "state = 'waiting' AND sample IS NULL",
    'running': "state IN ('running','retrying') AND sample IS NULL",
    'sample_waiting': "state = 'waiting' AND sample IS NOT NULL",
    'sample_running': "state IN ('running','retrying') AND sample IS NOT NULL",
}


def upgrade() -> None:
    op.add_column('run', sa.Column('sample', sa.String(length=40), nullable=True))
    _replace(BEFORE, AFTER)


def downgrade() -> None:
    _replace(AFTER, BEFORE)
    op.drop_column('run', 'sample')


def _replace(old: dict[str, str], new: dict[str, str]) -> None:
    for name in old:
        op.drop_index(f'uq_run_{name}', table_name='run')
    for name, where in new.items():
        op.create_index(f'uq_run_{name}', 'run', ['model'], unique=True, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
