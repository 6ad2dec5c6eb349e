//! SQL of table `servers`.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{SqliteStore, begin};
use crate::model::{ServerName, ServerSource, ServerSpec, Timestamp};
use crate::store::{DiscoveryRow, ServerRow, ServerUpsert, StoreError, Upserted};

const TABLE: &str = "servers";

const SELECT: &str = "select name, spec, enabled, enabled_override, retired, source, revision,
    created_at_ms, updated_at_ms, protocol_version, dialect, server_info, instructions,
    discovery_ok_at_ms, discovery_error, discovery_error_at_ms
    from servers order by name";

const SELECT_ONE: &str = "select name, spec, enabled, enabled_override, retired, source, revision,
    created_at_ms, updated_at_ms, protocol_version, dialect, server_info, instructions,
    discovery_ok_at_ms, discovery_error, discovery_error_at_ms
    from servers where name = ?";

const UPSERT: &str = "insert into servers
    (name, transport, spec, enabled, source, revision, created_at_ms, updated_at_ms)
    values (?, ?, ?, ?, ?, 1, ?, ?)
    on conflict (name) do update set
        transport = excluded.transport, spec = excluded.spec, enabled = excluded.enabled,
        source = excluded.source, retired = 0, revision = revision + 1,
        updated_at_ms = excluded.updated_at_ms";

impl SqliteStore {
    pub(in crate::store) async fn servers(&self) -> Result<Vec<ServerRow>, StoreError> {
        let rows = sqlx::query(SELECT).fetch_all(&self.state.readers).await?;
        rows.iter().map(|row| self.server(row)).collect()
    }

    pub(in crate::store) async fn upsert_servers(
        &self,
        servers: &[ServerUpsert],
        now: Timestamp,
    ) -> Result<Vec<Upserted>, StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        let mut done = Vec::with_capacity(servers.len());
        for server in servers {
            let before = sqlx::query(SELECT_ONE)
                .bind(server.name.as_str())
                .fetch_optional(&mut *transaction)
                .await?;
            // Compared opened: sealing the same value twice gives two texts.
            let result = match before.map(|row| self.server(&row)).transpose()? {
                Some(row) if is_same(&row, server) => Upserted::Unchanged,
                Some(_) => Upserted::Changed,
                None => Upserted::Created,
            };
            done.push(result);
            if result == Upserted::Unchanged {
                continue;
            }
            let sealed = self.sealer.seal(&server.name, &server.spec)?;
            sqlx::query(UPSERT)
                .bind(server.name.as_str())
                .bind(sealed.transport.kind().as_str())
                .bind(write_spec(&sealed)?)
                .bind(server.enabled)
                .bind(server.source.as_str())
                .bind(now.as_millis())
                .bind(now.as_millis())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(done)
    }

    pub(in crate::store) async fn set_server_enabled(
        &self,
        name: &ServerName,
        enabled: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query(
            "update servers set enabled_override = ?, updated_at_ms = ? where name = ?",
        )
        .bind(enabled)
        .bind(now.as_millis())
        .bind(name.as_str())
        .execute(&mut *writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(in crate::store) async fn retire_servers(
        &self,
        names: &[ServerName],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut writer = self.state.writer().await?;
        let mut transaction = begin(&mut writer).await?;
        for name in names {
            sqlx::query(
                "update servers set retired = 1, revision = revision + 1, updated_at_ms = ?
                 where name = ? and retired = 0",
            )
            .bind(now.as_millis())
            .bind(name.as_str())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn delete_server(
        &self,
        name: &ServerName,
    ) -> Result<bool, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query("delete from servers where name = ?")
            .bind(name.as_str())
            .execute(&mut *writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(in crate::store) async fn record_discovery(
        &self,
        name: &ServerName,
        found: &DiscoveryRow,
    ) -> Result<bool, StoreError> {
        let mut writer = self.state.writer().await?;
        let done = sqlx::query(
            "update servers set protocol_version = ?, dialect = ?, server_info = ?,
                instructions = ?, discovery_ok_at_ms = ?, discovery_error = ?,
                discovery_error_at_ms = ?
             where name = ?",
        )
        .bind(found.protocol_version.clone())
        .bind(found.dialect.clone())
        .bind(found.server_info.clone())
        .bind(found.instructions.clone())
        .bind(found.ok_at.map(Timestamp::as_millis))
        .bind(found.error.clone())
        .bind(found.error_at.map(Timestamp::as_millis))
        .bind(name.as_str())
        .execute(&mut *writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    fn server(&self, row: &SqliteRow) -> Result<ServerRow, StoreError> {
        let name: &str = row.try_get("name")?;
        let spec: &str = row.try_get("spec")?;
        let source: &str = row.try_get("source")?;
        // The specification may hold secrets, so the error shows the server's name only.
        let mut spec: ServerSpec = serde_json::from_str(spec)
            .map_err(|_not_a_spec| StoreError::bad_value(TABLE, "spec", name))?;
        let sealed_problem =
            self.sealer.open(name, &mut spec).err().map(|error| sealed_problem(name, &error));
        let at = |column| -> Result<Timestamp, StoreError> {
            Ok(Timestamp::from_millis(row.try_get(column)?))
        };
        let maybe_at = |column| -> Result<Option<Timestamp>, StoreError> {
            Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis))
        };
        let discovery = DiscoveryRow {
            protocol_version: row.try_get("protocol_version")?,
            dialect: row.try_get("dialect")?,
            server_info: row.try_get("server_info")?,
            instructions: row.try_get("instructions")?,
            ok_at: maybe_at("discovery_ok_at_ms")?,
            error: row.try_get("discovery_error")?,
            error_at: maybe_at("discovery_error_at_ms")?,
        };
        Ok(ServerRow {
            name: ServerName::parse(name)
                .map_err(|_not_a_name| StoreError::bad_value(TABLE, "name", name))?,
            spec,
            sealed_problem,
            enabled: row.try_get("enabled")?,
            enabled_override: row.try_get("enabled_override")?,
            retired: row.try_get("retired")?,
            source: ServerSource::parse(source)
                .ok_or_else(|| StoreError::bad_value(TABLE, "source", source))?,
            revision: row.try_get("revision")?,
            created_at: at("created_at_ms")?,
            updated_at: at("updated_at_ms")?,
            discovery: (discovery != DiscoveryRow::default()).then_some(discovery),
        })
    }
}

/// The error's own text says why; what helps depends on what it stops.
fn sealed_problem(server: &str, error: &StoreError) -> String {
    let why = match error {
        StoreError::SealKey { path, reason } => {
            format!("its sealed values need the key file `{}`: {reason}", path.display())
        }
        StoreError::Files { path, source, .. } => format!(
            "its sealed values need the key file `{}`, which could not be read: {source}",
            path.display()
        ),
        StoreError::Sealed { key, .. } => {
            format!("its sealed value `{key}` does not open with the key file `seal.key`")
        }
        other => other.to_string(),
    };
    format!(
        "{why}; put the right key file back and restart the router, or set the values again: `switchyard servers remove {server}`, then `switchyard servers add {server} ...` (for a server of the configuration file a restart does)"
    )
}

fn is_same(row: &ServerRow, server: &ServerUpsert) -> bool {
    !row.retired
        && row.sealed_problem.is_none()
        && row.spec == server.spec
        && row.enabled == server.enabled
        && row.source == server.source
}

fn write_spec(spec: &ServerSpec) -> Result<String, StoreError> {
    // JSON has no infinities, which a retry budget could hold.
    serde_json::to_string(spec)
        .map_err(|error| StoreError::bad_value(TABLE, "spec", &error.to_string()))
}
