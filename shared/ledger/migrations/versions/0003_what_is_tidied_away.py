"""what is tidied away"""

from alembic import op
import sqlalchemy as sa

from shared.ledger.tables import Instant

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('tidying',
    sa.Column('id', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('owner', sa.String(length=200), nullable=False),
    sa.Column('keep', sa.JSON(), nullable=False),
    sa.Column('lease_until', Instant(), nullable=False),
    sa.Column('started_at', Instant(), nullable=False),
    sa.Column('ended_at', Instant(), nullable=True),
    sa.Column('taken', sa.JSON(), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tidying'))
    )
    op.add_column('run', sa.Column('tidied_at', Instant(), nullable=True))
    for name, kind in (
        ('pinned_at', Instant()), ('pinned_by', sa.String(length=200)), ('pin_reason', sa.Text()),
        ('tidied_at', Instant()), ('removed_at', Instant()),
    ):
        op.add_column('version', sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name in ('removed_at', 'tidied_at', 'pin_reason', 'pinned_by', 'pinned_at'):
        op.drop_column('version', name)
    op.drop_column('run', 'tidied_at')
    op.drop_table('tidying')
