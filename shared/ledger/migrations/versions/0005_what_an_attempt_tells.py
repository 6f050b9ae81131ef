"""what an attempt tells, takes and leaves; models that pause"""

from alembic import op
import sqlalchemy as sa

from shared.ledger.tables import Big, Instant

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

COLUMNS = {
    'run': (('checkpoint', sa.JSON(none_as_null=True)),),
    'attempt': (
        ('metrics', sa.JSON(none_as_null=True)), ('cpu_s', sa.Float()), ('gpu_s', sa.Float()),
        ('memory_bytes', Big), ('read_bytes', Big), ('written_bytes', Big),
    ),
    'model': (('failed', sa.Integer()), ('paused_at', Instant())),
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, _ in columns:
            op.drop_column(table, name)
