use matrix_sdk::ruma::user_id;
use serde_json::{Value, json};

use super::*;

fn own() -> Own<'static> {
    Own { user: user_id!("@musher:example.org"), names: vec!["Musher Bot".to_owned()], redacts_in_content: true }
}

fn event(sender: &str, content: &Value) -> Reading {
    let event = json!({
        "type": "m.room.message", "event_id": "$e", "sender": sender, "origin_server_ts": 1_700_000_000_000_i64, "content": content,
    });
    read(serde_json::from_value(event).expect("an event"), &own())
}

fn said(content: &Value) -> Option<Said> {
    match event("@ann:example.org", content) {
        Reading::Message { said, .. } => said,
        _ => None,
    }
}

fn text(body: &str) -> Value {
    json!({"msgtype": "m.text", "body": body})
}

#[test]
fn only_what_people_say_is_read() {
    assert_eq!(
        said(&text("hello")),
        Some(Said {
            sender: user_id!("@ann:example.org").to_owned(),
            at_ms: 1_700_000_000_000,
            text: "hello".to_owned(),
            replies_to: None,
            thread: None,
            mentions_us: false,
            with_file: false,
        })
    );
    assert_eq!(said(&json!({"msgtype": "m.emote", "body": "waves"})).expect("an emote counts").text, "waves");
    for silent in [
        json!({"msgtype": "m.notice", "body": "Musher: hi"}),
        json!({"msgtype": "m.location", "body": "here", "geo_uri": "geo:1,2"}),
        json!({"msgtype": "m.text", "body": "* new", "m.new_content": {"msgtype": "m.text", "body": "new"}, "m.relates_to": {"rel_type": "m.replace", "event_id": "$old"}}),
    ] {
        assert_eq!(said(&silent), None, "{silent}");
    }
    match event("@ann:example.org", &text("@musher: !help")) {
        Reading::Message { known, .. } => assert_eq!(known.text, "!help", "as it was taken"),
        other => panic!("{other:?}"),
    }
    match event("@musher:example.org", &text("our own")) {
        Reading::Message { known, said: None, .. } => {
            let sender = user_id!("@musher:example.org").to_owned();
            assert_eq!(known, Known { sender, text: "our own".to_owned(), edit: None });
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_a_file_the_caption_is_read_and_never_its_name() {
    for kind in ["m.image", "m.file", "m.audio", "m.video"] {
        let file = |body: &str, filename: Option<&str>| {
            let mut content = json!({"msgtype": kind, "body": body, "url": "mxc://example.org/x"});
            if let Some(filename) = filename {
                content["filename"] = json!(filename);
            }
            content
        };
        let read = |content: &Value| {
            let Said { text, mentions_us, with_file, .. } = said(content).expect("it is read");
            (text, mentions_us, with_file)
        };
        for nameless in [file("musher: x.png", None), file("musher: x.png", Some("musher: x.png"))] {
            assert_eq!(read(&nameless), (String::new(), false, true), "{nameless}");
            match event("@ann:example.org", &nameless) {
                Reading::Message { known, .. } => assert_eq!(known.text, "musher: x.png", "replies to it quote that"),
                other => panic!("{other:?}"),
            }
        }
        let mut captioned = file("musher: what is this?", Some("x.png"));
        assert_eq!(read(&captioned), ("what is this?".to_owned(), true, true));
        captioned["body"] = json!("The Sled: go");
        captioned["format"] = json!("org.matrix.custom.html");
        captioned["formatted_body"] = json!(r#"<a href="https://matrix.to/#/@musher:example.org">The Sled</a>: go"#);
        assert_eq!(read(&captioned), ("go".to_owned(), true, true));
        let mut called = file("x.png", None);
        called["m.mentions"] = json!({"user_ids": ["@musher:example.org"]});
        assert_eq!(read(&called), (String::new(), true, true));
        assert_eq!(edited("@ann:example.org", &file("new words", Some("x.png"))).as_deref(), Some("new words"));
        assert_eq!(edited("@ann:example.org", &file("x.png", Some("x.png"))), None);
    }
}

#[test]
fn a_leading_mention_is_stripped() {
    // What was written; what is left; whether it mentions the bot for a client without and with m.mentions.
    let cases = [
        ("Musher Bot: status", "status", true, true),
        ("musher bot, status", "status", true, true),
        ("@musher status", "status", true, false),
        ("@Musher Bot status", "status", true, false),
        ("@musher:example.org status", "status", true, false),
        ("@musher:example.org: status", "status", true, true),
        ("musher: !stop", "!stop", true, true),
        ("MUSHER", "", true, false),
        ("@musher:elsewhere.org status", "@musher:elsewhere.org status", false, false),
        ("mushers are fast", "mushers are fast", false, false),
        ("musher-bot is fine", "musher-bot is fine", false, false),
        ("ask Musher Bot: status", "ask Musher Bot: status", false, false),
        ("  two lines\nhere  ", "two lines\nhere", false, false),
    ];
    for (body, left, without, with) in cases {
        let mut content = text(body);
        let plain = said(&content).expect("it is read");
        assert_eq!((plain.text.as_str(), plain.mentions_us), (left, without), "{body}");
        content["m.mentions"] = json!({});
        let modern = said(&content).expect("it is read");
        assert_eq!((modern.text.as_str(), modern.mentions_us), (left, with), "{body} with m.mentions");
    }
}

#[test]
fn a_mention_by_the_client_counts_wherever_it_stands() {
    let mut content = text("what does Musher Bot think?");
    content["m.mentions"] = json!({"user_ids": ["@musher:example.org"]});
    assert!(said(&content).expect("it is read").mentions_us);
    content["m.mentions"] = json!({"user_ids": ["@bob:example.org"], "room": true});
    assert!(!said(&content).expect("it is read").mentions_us);
}

#[test]
fn pills_count_for_clients_without_mentions() {
    let pill = |body: &str, html: &str| {
        said(&json!({"msgtype": "m.text", "body": body, "format": "org.matrix.custom.html", "formatted_body": html}))
            .expect("it is read")
    };
    let leading = pill("The Sled: go", r#"<a href="https://matrix.to/#/@musher:example.org">The Sled</a>: go"#);
    assert_eq!((leading.text.as_str(), leading.mentions_us), ("go", true));
    let encoded =
        pill("R&D go", r#"<p><a class="x" href='https://matrix.to/#/%40musher%3Aexample.org'>R&amp;D</a> go</p>"#);
    assert_eq!((encoded.text.as_str(), encoded.mentions_us), ("go", true));
    let inside = pill("ask The Sled", r#"ask <a href="https://matrix.to/#/@musher:example.org">The Sled</a>"#);
    assert_eq!((inside.text.as_str(), inside.mentions_us), ("ask The Sled", true));
    let other = pill("Bob: go", r#"<a href="https://matrix.to/#/@bob:example.org">Bob</a>: go"#);
    assert_eq!((other.text.as_str(), other.mentions_us), ("Bob: go", false));
    let broken = pill("x", r#"<a href="https://matrix.to/#/@musher:example.org"#);
    assert!(!broken.mentions_us);
}

#[test]
fn replies_lose_their_fallback_and_threads_are_told_from_replies() {
    let reply = said(&json!({
        "msgtype": "m.text", "body": "> <@musher:example.org> earlier\n> more\n\nMusher Bot: and now?",
        "m.relates_to": {"m.in_reply_to": {"event_id": "$earlier"}},
    }))
    .expect("it is read");
    assert_eq!((reply.text.as_str(), reply.replies_to.as_ref().map(|id| id.as_str())), ("and now?", Some("$earlier")));
    assert_eq!(reply.thread, None);

    let quoting = said(&text("> a quote\n\nand text")).expect("it is read");
    assert_eq!(quoting.text, "> a quote\n\nand text");

    let threaded = |falling_back: bool| {
        said(&json!({
            "msgtype": "m.text", "body": "in a thread",
            "m.relates_to": {"rel_type": "m.thread", "event_id": "$root", "is_falling_back": falling_back, "m.in_reply_to": {"event_id": "$latest"}},
        }))
        .expect("it is read")
    };
    assert_eq!(threaded(true).thread.expect("a thread"), "$root");
    assert_eq!(threaded(true).replies_to, None);
    assert_eq!(threaded(false).replies_to.expect("a reply"), "$latest");
}

#[test]
fn only_our_own_coming_in_is_a_join() {
    let member = |user: &str, before: Option<&str>, after: &str| {
        let mut event = json!({
            "type": "m.room.member", "event_id": "$m", "sender": user, "state_key": user, "origin_server_ts": 1, "content": {"membership": after},
        });
        if let Some(before) = before {
            event["unsigned"] = json!({"prev_content": {"membership": before}});
        }
        matches!(read(serde_json::from_value(event).expect("an event"), &own()), Reading::Joined)
    };
    assert!(member("@musher:example.org", Some("invite"), "join"));
    assert!(member("@musher:example.org", Some("leave"), "join"));
    assert!(member("@musher:example.org", None, "join"));
    assert!(!member("@musher:example.org", Some("join"), "join"));
    assert!(!member("@musher:example.org", Some("join"), "leave"));
    assert!(!member("@ann:example.org", None, "join"));
}

/// What an edit to this content says.
fn edited(sender: &str, new_content: &Value) -> Option<String> {
    let content = json!({
        "msgtype": "m.text", "body": "* fallback", "m.new_content": new_content,
        "m.relates_to": {"rel_type": "m.replace", "event_id": "$old"},
    });
    match event(sender, &content) {
        Reading::Edit { event_id, original, sender: editor, text } => {
            assert_eq!((event_id.as_str(), original.as_str(), editor.as_str()), ("$e", "$old", sender));
            Some(text)
        }
        Reading::Nothing(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_edit_is_read_like_a_message() {
    let ann = "@ann:example.org";
    for (body, left) in [
        ("new words", "new words"),
        ("Musher Bot: new words", "new words"),
        ("@musher new words", "new words"),
        ("> <@ann:example.org> earlier\n> more\n\nMusher Bot: and now?", "and now?"),
        ("> * <@ann:example.org> waves\n\nand now?", "and now?"),
        // A quote of the person's own, of what only looks like a fallback.
        ("> <b>x</b>\n\nwhat does it mean?", "> <b>x</b>\n\nwhat does it mean?"),
        ("", ""),
    ] {
        assert_eq!(edited(ann, &text(body)).as_deref(), Some(left), "{body}");
    }
    let pill = json!({
        "msgtype": "m.text", "body": "The Sled: go", "format": "org.matrix.custom.html",
        "formatted_body": r#"<a href="https://matrix.to/#/@musher:example.org">The Sled</a>: go"#,
    });
    assert_eq!(edited(ann, &pill).as_deref(), Some("go"));
    assert_eq!(edited(ann, &json!({"msgtype": "m.emote", "body": "waves"})).as_deref(), Some("waves"));
    assert_eq!(edited(ann, &json!({"msgtype": "m.notice", "body": "x"})), None);
    assert_eq!(edited(ann, &json!({"msgtype": "m.image", "body": "x.png", "url": "mxc://example.org/x"})), None);
    assert_eq!(edited("@musher:example.org", &text("our draft")), None);
}

#[test]
fn what_is_remembered_of_a_message_is_what_it_says_by_now_as_the_homeserver_knows() {
    let edited_by = |editor: &str, new_content: Value| {
        let edit = json!({
            "type": "m.room.message", "event_id": "$edit", "sender": editor, "origin_server_ts": 2,
            "content": {
                "msgtype": "m.text", "body": "* fallback", "m.new_content": new_content,
                "m.relates_to": {"rel_type": "m.replace", "event_id": "$e"},
            },
        });
        let event = json!({
            "type": "m.room.message", "event_id": "$e", "sender": "@ann:example.org", "origin_server_ts": 1,
            "content": text("musher: old"), "unsigned": {"m.relations": {"m.replace": edit}},
        });
        match read(serde_json::from_value(event).expect("an event"), &own()) {
            Reading::Message { known, said, .. } => {
                assert_eq!(said.expect("it is said").text, "old", "the edit is taken by itself");
                (known.text, known.edit.map(|edit| edit.to_string()))
            }
            other => panic!("{other:?}"),
        }
    };
    let old = ("old".to_owned(), None);
    assert_eq!(edited_by("@ann:example.org", text("musher: new")), ("new".to_owned(), Some("$edit".to_owned())));
    assert_eq!(edited_by("@eve:example.org", text("forged")), old);
    assert_eq!(edited_by("@ann:example.org", json!({"msgtype": "m.notice", "body": "x"})), old);
}

#[test]
fn a_redaction_names_its_event_where_the_rooms_version_says() {
    let redaction = |sender: &str, top: Option<&str>, content: Option<&str>, redacts_in_content: bool| {
        let mut event = json!({
            "type": "m.room.redaction", "event_id": "$r", "sender": sender, "origin_server_ts": 1, "content": {},
        });
        if let Some(top) = top {
            event["redacts"] = json!(top);
        }
        if let Some(content) = content {
            event["content"]["redacts"] = json!(content);
        }
        let own = Own { redacts_in_content, ..own() };
        match read(serde_json::from_value(event).expect("an event"), &own) {
            Reading::Redaction { redacts, sender: by, .. } => {
                assert_eq!(by, sender);
                Some(redacts.to_string())
            }
            _ => None,
        }
    };
    let ann = "@ann:example.org";
    for (top, content, in_content, names) in [
        (Some("$top"), None, false, "$top"),
        (Some("$top"), Some("$content"), false, "$top"),
        (Some("$top"), Some("$content"), true, "$content"),
        (None, Some("$content"), true, "$content"),
        (Some("$top"), None, true, "$top"),
    ] {
        assert_eq!(
            redaction(ann, top, content, in_content).as_deref(),
            Some(names),
            "{top:?} {content:?} {in_content}"
        );
    }
    assert_eq!(redaction("@musher:example.org", Some("$top"), None, false).as_deref(), Some("$top"), "ours, too");
}

#[test]
fn reactions_are_signs_of_others() {
    let reaction = |sender: &str, key: &str| {
        let event = json!({
            "type": "m.reaction", "event_id": "$r", "sender": sender, "origin_server_ts": 1,
            "content": {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$question", "key": key}},
        });
        match read(serde_json::from_value(event).expect("an event"), &own()) {
            Reading::Reaction { target, key, .. } => Some((target.to_string(), key)),
            _ => None,
        }
    };
    let toned = ('\u{1F3FB}'..='\u{1F3FF}').map(|tone| (format!("👎{tone}\u{FE0F}"), "👎"));
    let plain = [("✅", "✅"), ("👍\u{FE0F}", "👍"), ("👍🏽", "👍"), ("yes", "yes")];
    for (key, read) in plain.map(|(key, read)| (key.to_owned(), read)).into_iter().chain(toned) {
        let key = key.as_str();
        assert_eq!(reaction("@ann:example.org", key), Some(("$question".to_owned(), read.to_owned())));
    }
    assert_eq!(reaction("@ann:example.org", &"x".repeat(65)), None);
    assert_eq!(reaction("@musher:example.org", "⏳"), None);
}
