//! Whether a repository is where its address says, before it is cloned: whoever fetches later follows no redirect.

use std::time::Duration;

use axum::http::header;

use super::{Git, credentials::WebCredential, remote::WebRemote};

/// How long the server may take; what it does then, the clone will tell.
const PATIENCE: Duration = Duration::from_secs(20);
/// What git asks for first.
const REFERENCES: &str = "/info/refs?service=git-upload-pack";

impl Git {
    /// The address to which the server sends whoever asks for a repository; nothing when it sends nobody anywhere, or does not
    /// answer.
    pub async fn moved(&self, remote: &WebRemote, credential: Option<&WebCredential>) -> Option<String> {
        self.reach.literal(remote.bare_host()).ok()?;
        let mut request = self.client(remote).get(format!("{remote}{REFERENCES}")).timeout(PATIENCE);
        if let Some(credential) = credential {
            request = request.header(header::AUTHORIZATION, credential.basic());
        }
        let answer = request.send().await.ok()?;
        if !answer.status().is_redirection() {
            return None;
        }
        let to = answer.headers().get(header::LOCATION)?.to_str().ok()?;
        let to = answer.url().join(to).ok()?.to_string();
        Some(to.strip_suffix(REFERENCES).map_or_else(|| to.clone(), str::to_owned))
    }
}
