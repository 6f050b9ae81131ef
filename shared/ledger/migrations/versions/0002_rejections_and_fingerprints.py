"""rejections of the stream, fingerprints of reports with a key"""

from alembic import op
import sqlalchemy as sa

from shared.ledger.tables import Big, Instant

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('rejection',
    sa.Column('id', Big, autoincrement=True, nullable=False),
    sa.Column('entry', sa.String(length=64), nullable=False),
    sa.Column('source', sa.String(length=400), nullable=True),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('excerpt', sa.Text(), nullable=False),
    sa.Column('at', Instant(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_rejection')),
    sa.UniqueConstraint('entry', name=op.f('uq_rejection_entry'))
    )
    with op.batch_alter_table('report', schema=None) as batch_op:
        batch_op.add_column(sa.Column('fingerprint', sa.String(length=80), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('report', schema=None) as batch_op:
        batch_op.drop_column('fingerprint')

    op.drop_table('rejection')
