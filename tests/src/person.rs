//! A person on Matrix: a client for unencrypted rooms, over the client-server API alone.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    homeserver::Homeserver,
    secrets::{self, Area, Kind},
    wait,
};

/// How long one `sync` may wait for news.
const POLL: Duration = Duration::from_secs(2);

/// A sync leaves nothing out: by default it skips all but the newest few events of a room.
const EVERYTHING: &str = r#"{"room":{"timeline":{"limit":1000}}}"#;

/// Somebody who is logged in.
#[derive(Debug)]
pub struct Person {
    /// The full user id, such as `@ann:homeserver.test`.
    pub id: String,
    password: String,
    url: String,
    token: String,
    http: reqwest::Client,
    seen: Mutex<Seen>,
}

/// What the syncs have brought so far.
#[derive(Debug, Default)]
struct Seen {
    since: Option<String>,
    /// Room and event, in the order of arrival.
    events: Vec<(String, Value)>,
    /// Room and the users who were shown as typing.
    typing: Vec<(String, Vec<String>)>,
    /// Room, reader and the event up to which they have read.
    read: Vec<(String, String, String)>,
    invites: Vec<String>,
}

/// A message as it came to the person.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its event id.
    pub event_id: String,
    /// Who sent it.
    pub sender: String,
    /// `m.text` or `m.notice`.
    pub kind: String,
    /// The plain text.
    pub body: String,
    /// The formatted text, where there is one.
    pub html: Option<String>,
    /// The event that it edits.
    pub edits: Option<String>,
    /// The whole content.
    pub content: Value,
}

/// A reaction as it came to the person; one that had been taken back by then says neither to what it was nor what it showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaction {
    /// Its event id.
    pub event_id: String,
    /// The event that it is to.
    pub to: String,
    /// What it shows.
    pub key: String,
}

impl Person {
    /// Makes an account whose name begins with `name`, and logs in. Its name is never used twice.
    pub async fn join(homeserver: &Homeserver, name: &str) -> Result<Self> {
        let name = format!("{name}-{}", uuid::Uuid::new_v4().simple());
        let password = secrets::mint(Kind::MatrixPassword);
        let id = homeserver.register(&name, &password).await?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let login = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": id },
            "password": password,
        });
        let url = format!("{}/_matrix/client/v3", homeserver.url());
        let answer: Value = http.post(format!("{url}/login")).json(&login).send().await?.json().await?;
        let token =
            answer["access_token"].as_str().with_context(|| format!("{id} could not log in: {answer}"))?.to_owned();
        secrets::register(Kind::MatrixToken, &token);
        Ok(Self { id, password, url, token, http, seen: Mutex::default() })
    }

    /// The password of the account, for a bot that logs in as this user.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Makes a private, unencrypted room, and invites `guests` in the same request.
    pub async fn create_room(&self, name: &str, guests: &[&str]) -> Result<String> {
        let body = json!({ "preset": "private_chat", "name": name, "invite": guests });
        let answer = self.request(Method::POST, "createRoom", &body).await?;
        Ok(answer["room_id"].as_str().context("a room has an id")?.to_owned())
    }

    /// Joins a room that one is invited to.
    pub async fn enter(&self, room: &str) -> Result<()> {
        self.request(Method::POST, &format!("join/{}", escaped(room)), &json!({})).await.map(drop)
    }

    /// Invites somebody into a room.
    pub async fn invite(&self, room: &str, who: &str) -> Result<()> {
        self.request(Method::POST, &format!("rooms/{}/invite", escaped(room)), &json!({ "user_id": who }))
            .await
            .map(drop)
    }

    /// Lets everybody speak in a room of one's own, or nobody but oneself.
    pub async fn let_speak(&self, room: &str, everybody: bool) -> Result<()> {
        let path = format!("rooms/{}/state/m.room.power_levels", escaped(room));
        // Whoever made a room has no level in it, and every right.
        let levels = json!({ "users": {}, "events_default": if everybody { 0 } else { 50 } });
        self.request(Method::PUT, &path, &levels).await.map(drop)
    }

    /// Lets somebody take back what others have said in a room of one's own.
    pub async fn let_tidy(&self, room: &str, who: &str) -> Result<()> {
        let path = format!("rooms/{}/state/m.room.power_levels", escaped(room));
        self.request(Method::PUT, &path, &json!({ "users": { who: 50 } })).await.map(drop)
    }

    /// Sets what a room of one's own says of itself, such as `m.room.topic`.
    pub async fn set_room(&self, room: &str, kind: &str, content: &Value) -> Result<()> {
        let path = format!("rooms/{}/state/{kind}", escaped(room));
        self.request(Method::PUT, &path, content).await.map(drop)
    }

    /// Takes another display name, in all rooms.
    pub async fn set_name(&self, name: &str) -> Result<()> {
        let path = format!("profile/{}/displayname", escaped(&self.id));
        self.request(Method::PUT, &path, &json!({ "displayname": name })).await.map(drop)
    }

    /// Says `text`; gives the event's id.
    pub async fn say(&self, room: &str, text: &str) -> Result<String> {
        self.send(room, &json!({ "msgtype": "m.text", "body": text })).await
    }

    /// Sends a message with this content; gives the event's id.
    pub async fn send(&self, room: &str, content: &Value) -> Result<String> {
        self.send_as(room, &uuid::Uuid::new_v4().to_string(), content).await
    }

    /// Sends a message under a transaction id of the caller's, so that it can be tried again; gives the event's id.
    pub async fn send_as(&self, room: &str, transaction: &str, content: &Value) -> Result<String> {
        let path = format!("rooms/{}/send/m.room.message/{transaction}", escaped(room));
        let answer = self.request(Method::PUT, &path, content).await?;
        Ok(answer["event_id"].as_str().context("an event has an id")?.to_owned())
    }

    /// Changes the text of a message of one's own; gives the id of the edit.
    pub async fn edit(&self, room: &str, event: &str, text: &str) -> Result<String> {
        let content = json!({
            "msgtype": "m.text",
            "body": format!("* {text}"),
            "m.new_content": { "msgtype": "m.text", "body": text },
            "m.relates_to": { "rel_type": "m.replace", "event_id": event },
        });
        self.send(room, &content).await
    }

    /// Takes an event of one's own back.
    pub async fn redact(&self, room: &str, event: &str) -> Result<()> {
        let path = format!("rooms/{}/redact/{}/{}", escaped(room), escaped(event), uuid::Uuid::new_v4());
        self.request(Method::PUT, &path, &json!({})).await.map(drop)
    }

    /// Reacts to an event; gives the id of the reaction.
    pub async fn react(&self, room: &str, event: &str, key: &str) -> Result<String> {
        let path = format!("rooms/{}/send/m.reaction/{}", escaped(room), uuid::Uuid::new_v4());
        let content = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": event, "key": key } });
        let answer = self.request(Method::PUT, &path, &content).await?;
        Ok(answer["event_id"].as_str().context("an event has an id")?.to_owned())
    }

    /// How `who` stands to the room: `join`, `invite`, `leave`, or nothing when they never had to do with it.
    pub async fn membership(&self, room: &str, who: &str) -> Result<Option<String>> {
        let path = format!("rooms/{}/state", escaped(room));
        let state = self.request(Method::GET, &path, &Value::Null).await?;
        let events = state.as_array().context("a room's state is a list")?;
        let member = events.iter().find(|event| event["type"] == "m.room.member" && event["state_key"] == who);
        Ok(member.and_then(|event| event["content"]["membership"].as_str()).map(str::to_owned))
    }

    /// Waits until `who` stands to the room as `membership` says.
    pub async fn wait_membership(&self, room: &str, who: &str, membership: &str) -> Result<()> {
        wait::until(&format!("{who} is in state `{membership}` in {room}"), wait::SHORT, || async {
            Ok((self.membership(room, who).await?.as_deref() == Some(membership)).then_some(()))
        })
        .await
    }

    /// Every message of `sender` in the room that has been seen so far, in order; edits are messages of their own.
    pub fn heard(&self, room: &str, sender: &str) -> Vec<Message> {
        let seen = self.seen();
        let events = seen.events.iter().filter(|(place, event)| place == room && event["sender"] == sender);
        events.filter_map(|(_, event)| Message::read(event)).collect()
    }

    /// What the homeserver has of the room: its events from the newest back, and its state.
    pub async fn history(&self, room: &str) -> Result<Vec<Value>> {
        let (mut all, mut from) = (Vec::new(), String::new());
        loop {
            let path = format!("rooms/{}/messages?dir=b&limit=1000{from}", escaped(room));
            let mut answer = self.request(Method::GET, &path, &Value::Null).await?;
            all.append(answer["chunk"].as_array_mut().context("a page of events is a list")?);
            let Some(end) = answer["end"].as_str() else { break };
            from = format!("&from={end}");
        }
        let state = self.request(Method::GET, &format!("rooms/{}/state", escaped(room)), &Value::Null).await?;
        all.extend(state.as_array().context("a room's state is a list")?.iter().cloned());
        Ok(all)
    }

    /// What must not be in any event that has been seen so far.
    fn search(&self) -> Result<Vec<secrets::Find>> {
        let mut finds = Vec::new();
        for (_, event) in &self.seen().events {
            finds.extend(in_event(event)?);
        }
        Ok(finds)
    }

    /// Waits for a message of `sender` that comes after the event `after` and that `wanted` likes.
    pub async fn wait_message(
        &self,
        room: &str,
        sender: &str,
        after: &str,
        within: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        let what = format!("{sender} says in {room} what is wanted");
        let found = self.wait_seen(&what, within, |seen| {
            let own = seen.events.iter().position(|(_, event)| event["event_id"] == after)?;
            let later =
                seen.events[own + 1..].iter().filter(|(place, event)| place == room && event["sender"] == sender);
            later.filter_map(|(_, event)| Message::read(event)).find(|message| wanted(message))
        });
        found.await.with_context(|| {
            let heard = self.heard(room, sender);
            let bodies: Vec<&str> = heard.iter().map(|message| message.body.as_str()).collect();
            format!("heard of {sender} in that room: {bodies:#?}")
        })
    }

    /// Says `text` and waits for an answer of `sender` that contains `needle`.
    pub async fn ask(&self, room: &str, sender: &str, text: &str, needle: &str) -> Result<Message> {
        let asked = self.say(room, text).await?;
        self.wait_message(room, sender, &asked, wait::LONG, |message| message.body.contains(needle))
            .await
            .with_context(|| format!("asked `{text}`, wanted `{needle}`"))
    }

    /// Waits until `who` is shown as typing in the room, now or at any time since the person logged in.
    pub async fn wait_typing(&self, room: &str, who: &str) -> Result<()> {
        self.wait_seen(&format!("{who} is typing"), wait::SHORT, |seen| {
            seen.typing.iter().any(|(place, users)| place == room && users.iter().any(|user| user == who)).then_some(())
        })
        .await
    }

    /// Waits until `who` has read up to this event of the room.
    pub async fn wait_read(&self, room: &str, who: &str, event: &str) -> Result<()> {
        self.wait_seen(&format!("{who} has read {event}"), wait::SHORT, |seen| {
            let place = |id: &str| seen.events.iter().position(|(_, event)| event["event_id"] == id);
            let wanted = place(event)?;
            let read = seen.read.iter().filter(|(place, reader, _)| place == room && reader == who);
            read.filter_map(|(_, _, event)| place(event)).any(|at| at >= wanted).then_some(())
        })
        .await
    }

    /// Waits until a reaction of `who` to this event has been seen.
    pub async fn wait_reaction(&self, room: &str, who: &str, event: &str) -> Result<Reaction> {
        self.wait_seen(&format!("{who} reacts to {event}"), wait::SHORT, |seen| {
            seen.reactions(room, who).find(|reaction| reaction.to == event)
        })
        .await
    }

    /// Waits until this event has been redacted.
    pub async fn wait_redacted(&self, room: &str, event: &str) -> Result<()> {
        self.wait_seen(&format!("{event} is taken back"), wait::SHORT, |seen| {
            seen.is_redacted(room, event).then_some(())
        })
        .await
    }

    /// Whether this event has been redacted, so far as has been seen.
    pub fn is_redacted(&self, room: &str, event: &str) -> bool {
        self.seen().is_redacted(room, event)
    }

    /// Every reaction of `who` in the room that has been seen so far, in order, also those that were taken back.
    pub fn reactions(&self, room: &str, who: &str) -> Vec<Reaction> {
        self.seen().reactions(room, who).collect()
    }

    /// Waits until nobody is shown as typing in the room.
    pub async fn wait_quiet(&self, room: &str) -> Result<()> {
        self.wait_seen("nobody is typing", wait::SHORT, |seen| {
            seen.typing.iter().rfind(|(place, _)| place == room).is_none_or(|(_, users)| users.is_empty()).then_some(())
        })
        .await
    }

    /// Waits for an invitation into a room that is not among `known`.
    pub async fn wait_invited(&self, known: &[String]) -> Result<String> {
        self.wait_seen("an invitation comes", wait::SHORT, |seen| {
            seen.invites.iter().find(|room| !known.contains(room)).cloned()
        })
        .await
    }

    async fn wait_seen<T>(&self, what: &str, within: Duration, find: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        let search = async {
            loop {
                if let Some(found) = find(&self.seen()) {
                    return Ok(found);
                }
                self.sync().await?;
            }
        };
        match tokio::time::timeout(within, search).await {
            Ok(found) => found,
            Err(_) => bail!("waited {} s in vain until {what}", within.as_secs()),
        }
    }

    /// Takes in what is new, waiting a little for it, and gives the messages among it with their rooms, in order.
    ///
    /// One call at a time, also of the methods that wait: two would take in the same news.
    pub async fn listen(&self) -> Result<Vec<(String, Message)>> {
        let known = self.seen().events.len();
        self.sync().await?;
        let seen = self.seen();
        let news = seen.events[known..].iter();
        Ok(news.filter_map(|(room, event)| Some((room.clone(), Message::read(event)?))).collect())
    }

    async fn sync(&self) -> Result<()> {
        let since = self.seen().since.clone();
        let mut query = vec![("timeout", POLL.as_millis().to_string()), ("filter", EVERYTHING.to_owned())];
        query.extend(since.map(|since| ("since", since)));
        let response =
            self.http.get(format!("{}/sync", self.url)).bearer_auth(&self.token).query(&query).send().await?;
        let answer: Value = response.error_for_status()?.json().await?;
        self.seen().take(&answer);
        Ok(())
    }

    async fn request(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let mut request = self.http.request(method, format!("{}/{path}", self.url)).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        ensure!(status.is_success(), "{path} for {}: {status} {answer}", self.id);
        Ok(answer)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        secrets::judge(self.search());
    }
}

/// What must not be in an event. What people say themselves is theirs; every message of a gateway's has a mark.
pub fn in_event(event: &Value) -> Result<Vec<secrets::Find>> {
    let said = event["type"] == "m.room.message" && event["content"]["dev.musher"].is_null();
    let area = if said { Area::Said } else { Area::Elsewhere };
    let place = format!("an event ({}) of {}", event["type"], event["sender"]);
    secrets::in_bytes(area, &place, event.to_string().as_bytes())
}

impl Seen {
    fn is_redacted(&self, room: &str, event: &str) -> bool {
        let events = self.events.iter().filter(|(place, event)| place == room && event["type"] == "m.room.redaction");
        // Where it stands depends on the room's version.
        let mut redacted = events.flat_map(|(_, redaction)| [&redaction["redacts"], &redaction["content"]["redacts"]]);
        redacted.any(|redacted| redacted == event)
    }

    fn reactions(&self, room: &str, who: &str) -> impl Iterator<Item = Reaction> {
        let events = self.events.iter().filter(move |(place, event)| place == room && event["sender"] == who);
        events.filter_map(|(_, event)| {
            let relates_to = &event["content"]["m.relates_to"];
            let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (event["type"] == "m.reaction").then(|| Reaction {
                event_id: string(&event["event_id"]),
                to: string(&relates_to["event_id"]),
                key: string(&relates_to["key"]),
            })
        })
    }

    fn take(&mut self, answer: &Value) {
        for (room, news) in members(&answer["rooms"]["join"]) {
            let events = news["timeline"]["events"].as_array().into_iter().flatten();
            self.events.extend(events.map(|event| (room.clone(), event.clone())));
            let ephemeral = || news["ephemeral"]["events"].as_array().into_iter().flatten();
            for event in ephemeral().filter(|event| event["type"] == "m.receipt") {
                for (id, receipts) in members(&event["content"]) {
                    let readers = members(&receipts["m.read"]);
                    self.read.extend(readers.map(|(reader, _)| (room.clone(), reader.clone(), id.clone())));
                }
            }
            for event in ephemeral().filter(|event| event["type"] == "m.typing") {
                let users = event["content"]["user_ids"].as_array().into_iter().flatten();
                let users = users.filter_map(Value::as_str).map(str::to_owned).collect();
                self.typing.push((room.clone(), users));
            }
        }
        self.invites.extend(members(&answer["rooms"]["invite"]).map(|(room, _)| room.clone()));
        self.since = answer["next_batch"].as_str().map(str::to_owned);
    }
}

impl Message {
    fn read(event: &Value) -> Option<Self> {
        if event["type"] != "m.room.message" {
            return None;
        }
        let content = &event["content"];
        let edit = content["m.relates_to"]["rel_type"] == "m.replace";
        let shown = if edit { &content["m.new_content"] } else { content };
        let string = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            event_id: string(&event["event_id"])?,
            sender: string(&event["sender"])?,
            kind: string(&shown["msgtype"])?,
            body: string(&shown["body"])?,
            html: string(&shown["formatted_body"]),
            edits: if edit { string(&content["m.relates_to"]["event_id"]) } else { None },
            content: content.clone(),
        })
    }
}

fn members(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// The id of a room or an event as a segment of a path.
fn escaped(id: &str) -> String {
    id.replace('!', "%21").replace('$', "%24").replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_theirs_and_nothing_of_a_gateways() -> Result<()> {
        let typed = secrets::mint(Kind::Typed);
        let mut event =
            json!({ "type": "m.room.message", "sender": "@x:y", "content": { "body": format!("ann:{typed}@") } });
        assert_eq!(in_event(&event)?, []);
        event["content"]["dev.musher"] = json!({ "outbox": "1" });
        assert_eq!(in_event(&event)?.len(), 1);
        event["content"]["dev.musher"] = Value::Null;
        event["type"] = "m.room.name".into();
        assert_eq!(in_event(&event)?.len(), 1);
        event["content"]["body"] = "nothing".into();
        assert_eq!(in_event(&event)?, []);
        Ok(())
    }

    #[tokio::test]
    async fn two_people_talk() -> Result<()> {
        let homeserver = Homeserver::shared().await?;
        let (ann, bob) = tokio::try_join!(Person::join(homeserver, "ann"), Person::join(homeserver, "bob"))?;
        let room = ann.create_room("tea", &[&bob.id]).await?;
        assert_eq!(bob.wait_invited(&[]).await?, room);
        assert_eq!(ann.membership(&room, &bob.id).await?.as_deref(), Some("invite"));
        bob.enter(&room).await?;
        ann.wait_membership(&room, &bob.id, "join").await?;
        let asked = ann.say(&room, "one lump or two?").await?;
        bob.wait_message(&room, &ann.id, &asked, Duration::ZERO, |_| true)
            .await
            .expect_err("nothing after the question");
        let answered = bob.say(&room, "two").await?;
        let heard = ann.wait_message(&room, &bob.id, &asked, wait::SHORT, |message| message.body == "two").await?;
        assert_eq!((heard.event_id, heard.kind.as_str()), (answered.clone(), "m.text"));

        let reaction = ann.react(&room, &answered, "👍").await?;
        let shown = bob.wait_reaction(&room, &ann.id, &answered).await?;
        assert_eq!(shown, Reaction { event_id: reaction.clone(), to: answered, key: "👍".into() });
        ann.redact(&room, &reaction).await?;
        bob.wait_redacted(&room, &reaction).await?;
        assert_eq!(bob.reactions(&room, &ann.id).len(), 1);
        Ok(())
    }
}
