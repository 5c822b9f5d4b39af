//! One bridge of our own per gateway, on which containers do not see each other (SEC-7).

use std::collections::HashMap;
use std::fmt;

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::ListNetworksOptionsBuilder;

use crate::{Engine, EngineError, LABEL_GATEWAY};

const ICC_OPTION: &str = "com.docker.network.bridge.enable_icc";

/// The engine's id of a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkId(String);

impl NetworkId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Engine {
    /// The gateway's bridge, made if there is none. Callers at the same time get the same one.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] when a network carries our label and lets containers see each other.
    pub async fn ensure_network(&self, gateway_id: &str) -> Result<NetworkId, EngineError> {
        const WHAT: &str = "make the network";
        let lock = self.lock(&format!("network {gateway_id}"));
        let _held = lock.lock().await;
        if let Some(found) = self.networks(gateway_id).await?.into_iter().next() {
            return Ok(found);
        }
        let request = NetworkCreateRequest {
            name: format!("musher-{gateway_id}"),
            driver: Some("bridge".to_owned()),
            options: Some(HashMap::from([(ICC_OPTION.to_owned(), "false".to_owned())])),
            labels: Some(HashMap::from([(LABEL_GATEWAY.to_owned(), gateway_id.to_owned())])),
            ..NetworkCreateRequest::default()
        };
        let made = self.call(WHAT, self.docker().create_network(request)).await;
        // Another process may have been quicker, and an older engine lets both have the name: the first by id counts.
        let mut found = self.networks(gateway_id).await?.into_iter();
        let Some(first) = found.next() else {
            return Err(made.err().unwrap_or(EngineError::Answer { what: WHAT, missing: "network" }));
        };
        if let Ok(ours) = made
            && ours.id != first.0
        {
            self.call("remove the second network", self.docker().remove_network(&ours.id)).await?;
        }
        Ok(first)
    }

    /// Removes the gateway's bridge. One that is already gone is fine; one with containers on it is a
    /// [`EngineError::Conflict`] or, on Docker, an [`EngineError::Api`] with status 403.
    pub async fn remove_network(&self, gateway_id: &str) -> Result<(), EngineError> {
        for network in self.networks(gateway_id).await? {
            match self.call("remove the network", self.docker().remove_network(network.as_str())).await {
                Ok(()) | Err(EngineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The networks with this gateway's label, sorted by id.
    async fn networks(&self, gateway_id: &str) -> Result<Vec<NetworkId>, EngineError> {
        const WHAT: &str = "list the networks";
        let filters = HashMap::from([("label", vec![format!("{LABEL_GATEWAY}={gateway_id}")])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let mut found = Vec::new();
        for network in self.call(WHAT, self.docker().list_networks(Some(options))).await? {
            let id = network.id.ok_or(EngineError::Answer { what: WHAT, missing: "id" })?;
            if network.options.as_ref().and_then(|options| options.get(ICC_OPTION)).map(String::as_str) != Some("false")
            {
                let name = network.name.unwrap_or(id);
                let message = format!(
                    "network {name} carries this gateway's label and lets containers see each other; remove it"
                );
                return Err(EngineError::Conflict { what: "use the network", message });
            }
            found.push(NetworkId(id));
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::NetworkId;

    pub(crate) fn id(text: &str) -> NetworkId {
        NetworkId(text.to_owned())
    }
}
