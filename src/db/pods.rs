//! The tables `workloads`, `pods` and `ports`.

use rusqlite::{Connection, Row, params};

use super::{
    DbError, Tx, collect, parsed,
    states::{ensure_initial, sources},
};
use crate::model::{
    ids::{ContainerId, PodId, WorkloadId},
    names::{InstanceName, UserName},
    pod::{Pod, PodSpec, PublishedPort},
    time::Millis,
};

const COLUMNS: &str =
    "id, workload, user, instance, container_name, state, spec, adopted, container_id, op, event, reason, created_at";

fn read(row: &Row) -> Result<Pod, DbError> {
    let spec: String = row.get(6)?;
    let spec: PodSpec = serde_json::from_str(&spec).map_err(|e| DbError::Row(format!("spec of a pod: {e}")))?;
    Ok(Pod {
        id: parsed(row.get(0)?)?,
        workload: parsed(row.get(1)?)?,
        user: parsed(row.get(2)?)?,
        instance: parsed(row.get(3)?)?,
        container_name: row.get(4)?,
        state: parsed(row.get(5)?)?,
        spec,
        adopted: row.get(7)?,
        container: row.get::<_, Option<String>>(8)?.map(parsed::<ContainerId>).transpose()?,
        op: parsed(row.get(9)?)?,
        event: row.get(10)?,
        reason: row.get(11)?,
        created_at: row.get(12)?,
    })
}

pub fn list_live(connection: &Connection) -> Result<Vec<Pod>, DbError> {
    let query = format!("SELECT {COLUMNS} FROM pods WHERE state NOT IN ('deleted', 'failed') ORDER BY created_at, id");
    collect(connection, &query, [], read)
}

impl Tx<'_> {
    /// Pods that are not deleted and not failed.
    pub fn list_live_pods(&self) -> Result<Vec<Pod>, DbError> {
        list_live(&self.0)
    }

    pub fn find_pod(&self, id: PodId) -> Result<Option<Pod>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM pods WHERE id = ?1");
        Ok(collect(&self.0, &query, [id.to_string()], read)?.pop())
    }

    /// The workload of that name, created if there is none.
    pub fn ensure_workload(&self, user: &UserName, instance: &InstanceName) -> Result<WorkloadId, DbError> {
        let query = "SELECT id FROM workloads WHERE user = ?1 AND instance = ?2 AND ended_at IS NULL";
        let found = collect(&self.0, query, [user.as_str(), instance.as_str()], |row| parsed(row.get(0)?))?.pop();
        if let Some(id) = found {
            return Ok(id);
        }
        let id = WorkloadId::generate();
        self.0.execute(
            "INSERT INTO workloads (id, user, instance, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![id.to_string(), user.as_str(), instance.as_str(), Millis::now()],
        )?;
        Ok(id)
    }

    /// Ends the workload if its last pod is gone.
    pub fn end_workload(&self, id: WorkloadId) -> Result<(), DbError> {
        self.0.execute(
            "UPDATE workloads SET ended_at = ?2 WHERE id = ?1 AND NOT EXISTS
                 (SELECT 1 FROM pods WHERE workload = ?1 AND state NOT IN ('deleted', 'failed'))",
            params![id.to_string(), Millis::now()],
        )?;
        Ok(())
    }

    /// Inserts a new pod, in one of its first states, and reserves its ports.
    pub fn insert_pod(&self, pod: &Pod) -> Result<(), DbError> {
        ensure_initial(&pod.id.to_string(), pod.state)?;
        let time = Millis::now();
        self.0.execute(
            &format!("INSERT INTO pods ({COLUMNS}, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"),
            params![
                pod.id.to_string(),
                pod.workload.to_string(),
                pod.user.as_str(),
                pod.instance.as_str(),
                pod.container_name,
                pod.state.as_str(),
                spec_to_json(&pod.spec),
                pod.adopted,
                pod.container.as_ref().map(ContainerId::as_str),
                pod.op.to_string(),
                pod.event,
                pod.reason,
                pod.created_at,
                time,
            ],
        )?;
        self.insert_ports(pod.id, &pod.spec.ports)
    }

    /// Updates the fields that may change during a pod's life: state, spec, container, operation, event and reason.
    /// Only from a state that the new one may follow on.
    pub fn update_pod(&self, pod: &Pod) -> Result<(), DbError> {
        let id = pod.id.to_string();
        let updated = self.0.execute(
            &format!(
                "UPDATE pods SET state = ?2, spec = ?3, container_id = ?4, op = ?5, event = ?6, reason = ?7,
                     updated_at = ?8 WHERE id = ?1 AND state IN ({})",
                sources(pod.state)
            ),
            params![
                id,
                pod.state.as_str(),
                spec_to_json(&pod.spec),
                pod.container.as_ref().map(ContainerId::as_str),
                pod.op.to_string(),
                pod.event,
                pod.reason,
                Millis::now(),
            ],
        )?;
        self.ensure_updated(updated, "SELECT state FROM pods WHERE id = ?1", &id, pod.state)
    }

    pub fn insert_ports(&self, pod: PodId, ports: &[PublishedPort]) -> Result<(), DbError> {
        for port in ports {
            self.0.execute(
                "INSERT INTO ports (host_port, container_port, pod) VALUES (?1, ?2, ?3)",
                params![port.host, port.container, pod.to_string()],
            )?;
        }
        Ok(())
    }

    pub fn delete_ports(&self, pod: PodId) -> Result<(), DbError> {
        self.0.execute("DELETE FROM ports WHERE pod = ?1", [pod.to_string()])?;
        Ok(())
    }

    /// Host ports that pods hold.
    pub fn list_ports(&self) -> Result<Vec<u16>, DbError> {
        collect(&self.0, "SELECT host_port FROM ports", [], |row| Ok(row.get(0)?))
    }
}

fn spec_to_json(spec: &PodSpec) -> String {
    serde_json::to_string(spec).expect("numbers and texts")
}
