//! `musher up` on a terminal, without an engine: what the prompt makes of keys and pastes.

use std::{
    fs::{self, DirBuilder, File},
    io::{Read, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::{Child, Command},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use nix::pty::{OpenptyResult, Winsize, openpty};

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ends each drawing of the prompt: the cursor can be seen again.
const DRAWN: &str = "\x1b[?25h";
/// No engine, and an agent that needs none.
const CONFIG: &str = r#"
[agent]
runtime = "echo"
[engine]
host = "unix:///nowhere/docker.sock"
[http]
listen = "127.0.0.1:0"
"#;

/// A terminal on which a gateway runs.
struct Terminal {
    folder: tempfile::TempDir,
    gateway: Child,
    keys: File,
    /// What comes to be shown.
    pieces: Receiver<Vec<u8>>,
    /// What was shown until now.
    shown: String,
    /// As far as it was looked at.
    looked: usize,
}

impl Terminal {
    fn new(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let state = folder.path().join("state");
        DirBuilder::new().mode(0o700).create(&state).expect("there is room");
        fs::write(state.join("bot.toml"), CONFIG).expect("there is room");
        let size = Winsize { ws_row: 40, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("there are terminals");
        // Ours is closed with the command, so that nothing is left open when the gateway has ended.
        let gateway = Command::new(env!("CARGO_BIN_EXE_musher"))
            .arg("up")
            .env_clear()
            .envs([("HOME", folder.path()), ("MUSHER_HOME", &state), ("TERM", Path::new("xterm"))])
            .envs(variables.iter().copied())
            .stdin(slave.try_clone().expect("it is open"))
            .stdout(slave.try_clone().expect("it is open"))
            .stderr(slave)
            .spawn()
            .expect("it can be started");
        let keys = File::from(master);
        let (mut screen, mut answers) = (keys.try_clone().expect("it is open"), keys.try_clone().expect("it is open"));
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // Nothing more comes when the gateway has ended.
            while let Ok(length @ 1..) = screen.read(&mut piece) {
                // The editor asks where the cursor is.
                if piece[..length].windows(4).any(|bytes| bytes == b"\x1b[6n") {
                    answers.write_all(b"\x1b[1;1R").expect("it is open");
                }
                if sender.send(piece[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut this = Self { folder, gateway, keys, pieces, shown: String::new(), looked: 0 };
        this.sees(DRAWN);
        this
    }

    /// Takes what is shown next. False at the end.
    fn look(&mut self) -> bool {
        match self.pieces.recv_timeout(PATIENCE) {
            Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("nothing more is shown: {:?}", self.shown),
        }
        true
    }

    /// Waits until this is shown, after what was waited for before.
    fn sees(&mut self, wanted: &str) {
        loop {
            if let Some(at) = self.shown[self.looked..].find(wanted) {
                self.looked += at + wanted.len();
                return;
            }
            assert!(self.look(), "it ended without {wanted:?}: {:?}", self.shown);
        }
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it is open");
    }

    /// As terminals do it: marked as a paste where that was asked for.
    fn pastes(&mut self, text: &str) {
        let text = text.replace('\n', "\r");
        let asked = self.shown.rfind("\x1b[?2004h") > self.shown.rfind("\x1b[?2004l");
        self.types(&if asked { format!("\x1b[200~{text}\x1b[201~") } else { text });
    }

    /// Waits for the end. Gives what was typed, as the history has it.
    fn ends(&mut self) -> Vec<String> {
        while self.look() {}
        let status = self.gateway.wait().expect("it was started");
        assert!(status.success(), "{status}: {:?}", self.shown);
        let history = fs::read_to_string(self.folder.path().join("state/console_history")).unwrap_or_default();
        history.lines().map(str::to_owned).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        drop(self.gateway.kill());
        drop(self.gateway.wait());
    }
}

#[test]
fn a_paste_is_one_message_and_alt_enter_begins_another_line() {
    let mut terminal = Terminal::new(&[]);
    terminal.pastes("first words\nstop\nlast words");
    terminal.sees("last words");
    terminal.types("\r");
    terminal.sees("no agent here yet");
    terminal.types("above\x1b\rbelow\r");
    terminal.sees("no agent here yet");
    terminal.types("\x04");
    assert_eq!(terminal.ends(), ["first words<\\n>stop<\\n>last words", "above<\\n>below"]);
}

#[test]
fn who_leaves_is_told_that_it_ends() {
    for key in ["\x03", "\x04"] {
        let mut terminal = Terminal::new(&[]);
        terminal.types("version\r");
        terminal.sees(concat!("musher ", env!("CARGO_PKG_VERSION")));
        terminal.types(key);
        terminal.ends();
        terminal.sees("musher ends.");
        assert!(terminal.shown.contains("Ctrl-D ends it."), "{:?}", terminal.shown);
    }
}

#[test]
fn who_wants_no_colours_gets_none() {
    for (variable, is_coloured) in [("", true), ("1", false)] {
        let mut terminal = Terminal::new(&[("NO_COLOR", variable)]);
        terminal.types("version\r");
        terminal.sees(concat!("musher ", env!("CARGO_PKG_VERSION")));
        terminal.types("\x04");
        terminal.ends();
        let mut sequences = terminal.shown.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m'));
        let coloured = sequences.any(|(what, _)| what.parse().is_ok_and(|what: u8| (30..=107).contains(&what)));
        assert_eq!(coloured, is_coloured, "{:?}", terminal.shown);
    }
}
