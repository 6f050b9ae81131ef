"""what a release holds, where its tag was before, and trainings although nothing has changed"""

from alembic import op
import sqlalchemy as sa

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('release', sa.Column('content', sa.String(length=80), nullable=True))
    op.add_column('release', sa.Column('moved_from', sa.String(length=40), nullable=True))
    op.add_column('run', sa.Column('again', sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column('run', 'again')
    op.drop_column('release', 'moved_from')
    op.drop_column('release', 'content')
