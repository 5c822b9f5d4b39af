use proptest::prelude::*;

use super::*;

fn command(line: &str) -> Command {
    match read(line) {
        Said::Command(command) => command,
        other => panic!("{line:?} is no command but {other:?}"),
    }
}

#[test]
fn what_is_wholly_a_command_is_one() {
    for line in [
        "projects",
        "status",
        " stop ",
        "reset",
        "help",
        "help status",
        "switch myapp",
        "ssh",
        "ssh myapp",
        "version",
        "git audit",
        "diff",
        "undo",
    ] {
        assert_eq!(command(line), command(&format!("!{}", line.trim())), "{line}");
    }
    assert_eq!(command("delete project old"), Command::Delete(Delete::Project { name: "old".into() }));
    assert_eq!(
        command("!git log --oneline -5"),
        Command::Git { args: ["log", "--oneline", "-5"].map(Into::into).into() }
    );
    let Command::New(New::Project(new)) = command("new project myapp —stack rust --cpus 1.5") else { panic!() };
    assert_eq!((new.name.as_str(), new.stack.as_deref(), new.cpus), ("myapp", Some("rust"), Some(1.5)));
}

#[test]
fn a_capital_letter_makes_no_difference_to_a_verb() {
    for (said, meant) in [
        ("Stop", "stop"),
        ("Status", "status"),
        ("!Stop", "stop"),
        ("HELP", "help"),
        ("Delete Project old", "delete project old"),
        ("Confirm Delete old", "confirm delete old"),
        ("New Project myapp —stack rust", "new project myapp --stack rust"),
        ("!Git log", "!git log"),
    ] {
        assert_eq!(command(said), command(meant), "{said}");
    }
    assert_eq!(command("!git Log"), Command::Git { args: vec!["Log".into()] });
    assert_eq!(command("Switch MyApp"), Command::Switch { project: "MyApp".into() });
}

#[test]
fn credentials_are_not_repeated() {
    for line in ["!new project x https://ann:tok@h/x.git", "!new project https://ann:tok@h/x.git --stak y"] {
        let Said::Misused(answer) = read(line) else { panic!("{line} is misuse") };
        assert!(!answer.contains("tok") && !answer.contains("ann"), "{answer}");
    }
}

#[test]
fn prose_that_begins_like_a_command_reaches_the_agent() {
    for line in [
        "show me the parser",
        "add tests for the parser",
        "git push fails",
        "git status",
        "diff src/main.rs",
        "diff?",
        "undo the last commit",
        "undo that, please",
        "Undo.",
        "stop using unwrap",
        "stop, that is wrong",
        "Stop.",
        "Stop using unwrap",
        "Git push fails",
        "reset the counter to 0",
        "status of the build?",
        "switch to tabs",
        "new project structure would be nice",
        "help me with this",
        "help me",
        "projects are late",
        "delete project files that nobody uses",
        "stop\nand explain",
        "what is `stop`?",
        "don't",
        "",
    ] {
        assert_eq!(read(line), Said::Text(line.to_owned()), "{line}");
    }
}

#[test]
fn misuse_is_answered_with_the_way_on() {
    for (line, answer) in [
        (
            "!stattus",
            "⚠ unrecognized subcommand 'stattus'. some similar subcommands exist: 'stacks', 'status'.\nTry `help`.",
        ),
        ("!switch", "⚠ the following required arguments were not provided: <PROJECT>.\nTry `help switch`."),
        (
            "!new project x --stak rust",
            "⚠ unexpected argument '--stak' found. a similar argument exists: '--stack'.\nTry `help new`.",
        ),
        ("!", "⚠ there is no command after `!`.\nTry `help`."),
        ("!git \"", "⚠ a quotation mark is not closed."),
    ] {
        assert_eq!(read(line), Said::Misused(answer.to_owned()));
    }
}

#[test]
fn help_names_every_command_and_explains_each() {
    let all = help(None).expect("there is help");
    for verb in Command::command().get_subcommands() {
        assert!(all.contains(verb.get_name()), "{}", verb.get_name());
        help(Some(verb.get_name())).expect("each command is explained");
    }
    assert!(help(Some("nonsense")).is_err());
}

#[test]
fn what_is_hostile_is_an_argument_or_refused() {
    for hostile in text::hostile() {
        let word = shell_words::quote(&hostile);
        let mut lines = vec![hostile.clone(), format!("!{hostile}"), format!("!{word}")];
        for verb in Command::command().get_subcommands() {
            let nested: Vec<_> = verb.get_subcommands().map(|nested| format!(" {}", nested.get_name())).collect();
            for nested in nested.iter().map(String::as_str).chain([""]) {
                let name = verb.get_name();
                lines.push(format!("!{name}{nested} {word}"));
                lines.push(format!("!{name}{nested} {hostile}"));
                lines.push(format!("!{name}{nested} -- {word}"));
            }
        }
        for option in ["stack", "git", "branch", "depth", "path", "cpus", "memory"] {
            lines.push(format!("!new project a --git https://e.example/x --{option} {word}"));
            lines.push(format!("!new project {word} --{option}={word}"));
        }
        for line in lines {
            match read(&line) {
                Said::Misused(answer) => {
                    assert!(!answer.contains(text::is_unsafe), "{line:?}: {answer:?}");
                    assert!(!answer.contains("hunter2"), "{line:?}: {answer:?}");
                }
                // It is read back as what it was: nothing in it became a word or an option of its own.
                Said::Command(command) => {
                    let shown = command.to_string();
                    assert_eq!(parse(shown.trim_start_matches('!')).as_ref(), Ok(&command), "{line:?}: {shown:?}");
                }
                Said::Text(text) => assert!(!line.starts_with('!') && text == line.trim(), "{line:?}"),
            }
        }
    }
}

#[test]
fn members_are_named_by_their_whole_ids() {
    let add = |project: Option<&str>| Command::Members {
        project: None,
        change: Some(Membership::Add { person: "@ann:example.org".into(), project: project.map(ToOwned::to_owned) }),
    };
    assert_eq!(command("members add @ann:example.org"), add(None));
    assert_eq!(command("Members Add @ann:example.org app"), add(Some("app")));
    assert_eq!(command("members"), Command::Members { project: None, change: None });
    assert_eq!(command("members app"), Command::Members { project: Some("app".into()), change: None });
    for prose in ["members add value", "members add to the team", "members only?", "members of the team"] {
        assert_eq!(read(prose), Said::Text(prose.to_owned()));
    }
    for line in ["!members add ann", "!members add @ann", "!members add '@a b:c'", "!members app add @ann:example.org"]
    {
        let Said::Misused(answer) = read(line) else { panic!("{line} is misuse") };
        assert!(answer.contains("help members"), "{answer}");
    }
}

proptest! {
    #[test]
    fn every_command_that_we_print_is_read_back(
        name in "[a-z][a-z0-9-]{0,30}", path in proptest::option::of("[ -~]{1,20}"), depth in proptest::option::of(1u32..99),
        adopt: bool, lines in 1u32..=500, args in prop::collection::vec("[!-~]{1,8}", 1..4),
    ) {
        let git = depth.map(|_| "https://example.org/x y".to_owned());
        let new = NewProject {
            name: name.clone(), stack: Some("rust".into()), branch: git.clone(), adopt: adopt && git.is_none(), git, depth,
            path: path.filter(|path| !path.starts_with('-')), cpus: Some(0.5), memory: Some("2g".into()),
        };
        let commands = [
            Command::New(New::Project(new)), Command::Switch { project: name.clone() }, Command::Ssh { project: Some(name.clone()) },
            Command::Members { project: None, change: None }, Command::Members { project: Some(name.clone()), change: None },
            Command::Members { project: None, change: Some(Membership::Remove { person: "@a'b:c".into(), project: Some(name.clone()) }) },
            Command::Stacks(StacksVerb::List), Command::Stacks(StacksVerb::Check { name: Some(name.clone()) }),
            Command::Delete(Delete::Project { name: name.clone() }), Command::Confirm(Confirm::Delete { name }),
            Command::Logs { lines }, Command::Diff { paths: args.clone() }, Command::Git { args }, Command::Help { topic: Some("new".into()) },
            Command::Projects, Command::Status, Command::Stop, Command::Reset, Command::Doctor, Command::Version,
            Command::Git { args: vec!["--".into(), "-x".into()] }, Command::Diff { paths: vec!["--".into()] },
            Command::Diff { paths: vec![] }, Command::Undo,
        ];
        for command in commands {
            prop_assert_eq!(parse(command.to_string().trim_start_matches('!')), Ok(command));
        }
    }

    #[test]
    fn any_text_is_read_without_harm(line in "\\PC*") {
        let _said = read(&line);
    }
}
