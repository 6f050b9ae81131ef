"""what people and tokens did"""

from alembic import op
import sqlalchemy as sa

from shared.ledger.tables import Big, Instant

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

APPEND_ONLY = {
    'sqlite': (
        "CREATE TRIGGER history_update BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
        "CREATE TRIGGER history_delete BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
    ),
    'postgresql': (
        "CREATE FUNCTION headrace_history_stays() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'history is only added to'; END $$",
        "CREATE TRIGGER history_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON history EXECUTE FUNCTION headrace_history_stays()",
    ),
}


def upgrade() -> None:
    op.create_table('history',
    sa.Column('id', Big, autoincrement=True, nullable=False),
    sa.Column('at', Instant(), nullable=False),
    sa.Column('actor', sa.String(length=200), nullable=False),
    sa.Column('action', sa.String(length=40), nullable=False),
    sa.Column('subject', sa.String(length=200), nullable=False),
    sa.Column('model', sa.String(length=64), nullable=True),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('before', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('after', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_history'))
    )
    op.create_index('ix_history_model_id', 'history', ['model', 'id'], unique=False)
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table('history')
    if op.get_bind().dialect.name == 'postgresql':
        op.execute('DROP FUNCTION headrace_history_stays()')
