//! Messages that are taken out of a room, against the homeserver.

use super::*;

/// One redaction is refused, one comes too soon, and one meets a proxy whose homeserver is away.
fn with_redactions(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
    match path {
        path if path.contains("/redact/$foreign/") => {
            Some((403, json!({"errcode": "M_FORBIDDEN", "error": "no right to that"})))
        }
        path if path.contains("/redact/$soon/") => {
            Some((429, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "slowly", "retry_after_ms": 7000})))
        }
        path if path.contains("/redact/$away/") => Some((502, json!("bad gateway"))),
        path => one_message(number, path, token),
    }
}

#[tokio::test]
async fn a_message_is_taken_out_under_its_transaction_and_what_cannot_be_is_told_from_what_cannot_yet() {
    let homeserver = Homeserver::start(with_redactions).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    running.message().await;
    let room = Room { surface: SurfaceKind::Matrix, id: "!room:example.org".to_owned() };
    let take_back = async |event: &str| {
        let transaction = format!("take-back-{event}");
        running.surface.take_back(&room, event, &transaction, "it carried a credential").await
    };
    assert_eq!(take_back("$new").await.expect("it is taken out"), "$sent");
    let expected =
        ("rooms/!room:example.org/redact/$new/take-back-$new".to_owned(), json!({"reason": "it carried a credential"}));
    assert_eq!(homeserver.requests("/redact/", 1).await, [expected]);

    let refused = take_back("$foreign").await.expect_err("the bot may not");
    assert!(
        matches!(&refused, SendError::Refused { message, .. } if message.contains("no right to that")),
        "{refused}"
    );
    let not_an_event = take_back("foreign").await.expect_err("it is no event");
    assert!(matches!(not_an_event, SendError::Refused { .. }), "{not_an_event}");
    for (event, asked) in [("$soon", Some(Duration::from_secs(7))), ("$away", None)] {
        let later = take_back(event).await.expect_err("not now");
        assert!(matches!(&later, SendError::Transient { retry_after, .. } if *retry_after == asked), "{later}");
    }
    assert_eq!(homeserver.requests("/redact/", 4).await.len(), 4, "the outbox tries again, and nobody else");
    running.end().await;
}
