use proptest::prelude::*;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

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
fn stop_may_have_marks_behind_it() {
    for line in ["stop.", "Stop!", "STOP", "STOP!!!", "stop …", "stop...", "!stop.", " Stop ! "] {
        assert_eq!(command(line), Command::Stop, "{line}");
    }
}

#[test]
fn dashes_are_options_where_a_phone_made_them_and_words_where_a_person_did() {
    for (said, meant) in [
        ("!git log —oneline –stat", &["log", "--oneline", "--stat"][..]),
        ("!git commit -m \"mended —at last\"", &["commit", "-m", "mended —at last"]),
        ("!git commit -m 'one – two' —amend", &["commit", "-m", "one – two", "--amend"]),
        ("!git log A — B", &["log", "A", "—", "B"]),
    ] {
        assert_eq!(command(said), Command::Git { args: meant.iter().map(|arg| (*arg).into()).collect() }, "{said}");
    }
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
        "stop?",
        "stop now",
        "stop the server",
        "Stop! That is wrong.",
        "reset.",
        "Reset!",
        "Stop using unwrap",
        "Git push fails",
        "reset the counter to 0",
        "status of the build?",
        "switch to tabs",
        "new project structure would be nice",
        "help me with this",
        "help me with the tests",
        "help me",
        "help us",
        "help with new project ideas",
        "help git push is failing",
        "help undo the last change",
        "help stop the server",
        "help the new colleague",
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
        ("!stattus", "⚠ There is no command `stattus`. Did you mean `status` or `stacks`?\nTry `help`."),
        ("!nonsense", "⚠ There is no command `nonsense`.\nTry `help`."),
        ("!", "⚠ There is no command after `!`.\nTry `help`."),
        ("!-x", "⚠ There is no command `-x`.\nTry `help`."),
        ("!-- status", "⚠ There is no command `--`.\nTry `help`."),
        ("!git \"", "⚠ A quotation mark is not closed.\nClose it, or leave it out."),
        ("!git", "⚠ `git` wants arguments, such as `!git log --oneline -5`."),
        ("!switch", "⚠ `switch` wants more words: `switch <project>`."),
        ("!delete", "⚠ `delete` wants more words: `delete project <name>`."),
        ("!delete myapp", "⚠ There is no command `delete myapp`.\nThere is `delete project <name>`."),
        ("!delete project", "⚠ `delete project` wants more words: `delete project <name>`."),
        ("!delete --all", "⚠ `delete` wants more words: `delete project <name>`."),
        ("!new", "⚠ `new` wants more words: `new project <name> [options]`.\nTry `help new`."),
        ("!new app", "⚠ There is no command `new app`.\nThere is `new project <name> [options]`."),
        (
            "!new projct app",
            "⚠ There is no command `new projct`. Did you mean `project`?\nThere is `new project <name> [options]`.",
        ),
        ("!new project", "⚠ `new project` wants more words: `new project <name> [options]`.\nTry `help new`."),
        ("!new project a b", "⚠ `b` is one word too many: `new project <name> [options]`.\nTry `help new`."),
        (
            "!new project x --stak rust",
            "⚠ `new project` has no option `--stak`. Did you mean `--stack`?\nTry `help new`.",
        ),
        ("!new project x --stack", "⚠ `--stack` wants a word after it.\nTry `help new`."),
        ("!new project x --stack rust --stack go", "⚠ `--stack` is there twice.\nTry `help new`."),
        ("!new project x --branch main", "⚠ An option that you wrote needs `--git` as well.\nTry `help new`."),
        (
            "!new project x --adopt --git https://example.org/x",
            "⚠ `--adopt` and `--git` do not go together.\nTry `help new`.",
        ),
        ("!new project x --cpus nan", "⚠ `--cpus` cannot be `nan`.\nIt is a number, such as `--cpus 1.5`."),
        (
            "!new project x --git https://example.org/x --depth 0",
            "⚠ `--depth` cannot be `0`.\nIt is a number from 1 on, such as `--depth 1`.",
        ),
        ("!new project -dash", "⚠ `new project` has no option `-d`.\nTry `help new`."),
        ("!new --stack rust", "⚠ `new` wants more words: `new project <name> [options]`.\nTry `help new`."),
        ("!stacks", "⚠ `stacks` wants more words: `stacks list` or `stacks check [name]`."),
        (
            "!stacks lst",
            "⚠ There is no command `stacks lst`. Did you mean `list`?\nThere is `stacks list` and `stacks check [name]`.",
        ),
        ("!mode foo", "⚠ `foo` is no mode.\nTry `mode queue` or `mode interrupt`."),
        ("!mode queue now", "⚠ `now` is one word too many: `mode [mode]`.\nTry `help mode`."),
        ("!cancel x", "⚠ `x` is no number.\n`queue` lists the numbers."),
        ("!cancel", "⚠ `cancel` wants more words: `cancel <number>`."),
        ("!cancel 1 2", "⚠ `2` is one word too many: `cancel <number>`.\nTry `help cancel`."),
        ("!approve yes", "⚠ `yes` is no question's name.\nIt has six characters, such as `3fa81c`."),
        ("!approve", "⚠ `approve` wants more words: `approve <question>`."),
        (
            "!status myapp",
            "⚠ `status` takes nothing after it.\nIt is about the project that you have chosen: `switch myapp`, then `status`.",
        ),
        (
            "!status My.App",
            "⚠ `status` takes nothing after it.\nIt is about the project that you have chosen: `switch myapp`, then `status`.",
        ),
        ("!status --all", "⚠ `status` has no option `--all`.\nTry `help status`."),
        (
            "!stop using unwrap",
            "⚠ `stop` takes nothing after it.\nWrite `stop` alone. Without `!`, words like these go to the agent.",
        ),
        ("!projects all", "⚠ `projects` takes nothing after it.\nWrite `projects` alone."),
        ("!logs 50", "⚠ `logs` takes no `50` after it.\nTry `logs --lines 50`."),
        ("!logs 5000", "⚠ `logs` takes no `5000` after it.\nTry `logs --lines 500`."),
        (
            "!logs myapp",
            "⚠ `logs` takes nothing but options after it.\nIt is about the project that you have chosen: `switch myapp`, then `logs`.",
        ),
        ("!logs --lines 5000", "⚠ `--lines` cannot be `5000`.\nIt is a number from 1 to 500: `logs --lines 50`."),
        ("!diff --stat", "⚠ `diff` has no option `--stat`.\nTry `help diff`."),
        ("!help status --all", "⚠ `help` has no option `--all`.\nTry `help help`."),
        ("!members add", "⚠ `members add` wants more words: `members add <person> [project]`."),
        (
            "!members add ann",
            "⚠ `ann` is no person's id.\nA person is named by the whole id, such as `@ann:example.org`.",
        ),
        (
            "!members My.App",
            "⚠ `my.app` cannot be a project's name.\nA name is a lower-case letter, then lower-case letters, digits or dashes, 31 at most: for example `my-app2`.",
        ),
        (
            "!members app add @ann:example.org",
            "⚠ `add` comes first: `members add <person> [project]`.\nTry `help members`.",
        ),
        (
            "!members app all",
            "⚠ `all` is one word too many: `members [project]`, `members add <person> [project]` or `members remove <person> [project]`.\nTry `help members`.",
        ),
        ("!members app remove", "⚠ `remove` comes first: `members remove <person> [project]`.\nTry `help members`."),
        (
            "!members add '@a b:c'",
            "⚠ `@a b:c` is no person's id.\nA person is named by the whole id, such as `@ann:example.org`.",
        ),
        ("!members add @", "⚠ `@` is no person's id.\nA person is named by the whole id, such as `@ann:example.org`."),
        ("!logs 0", "⚠ `logs` takes no `0` after it.\nTry `logs --lines 1`."),
        (
            "!undo 2",
            "⚠ `undo` takes nothing after it.\nIt is about the project that you have chosen: `switch myapp`, then `undo`.",
        ),
        ("!confirm delete", "⚠ `confirm delete` wants more words: `confirm delete <name>`."),
    ] {
        assert_eq!(read(line), Said::Misused(answer.to_owned()), "{line}");
    }
}

#[test]
fn what_cannot_be_taken_back_is_suggested_for_a_clear_slip_alone() {
    for (word, verb, suggested) in [
        ("restart", "reset", false),
        ("stopping", "stop", false),
        ("confirmed", "confirm", false),
        ("cancelled", "cancel", false),
        ("rset", "reset", true),
        ("Stopp", "stop", true),
        ("udno", "undo", true),
    ] {
        let Said::Misused(answer) = read(&format!("!{word} myapp")) else { panic!("{word} is no command") };
        assert_eq!(answer.contains(&format!("`{verb}`")), suggested, "{answer}");
    }
    let verbs: Vec<_> = Command::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    assert!(misuse::IRREVOCABLE.iter().all(|verb| verbs.iter().any(|known| known == verb)), "each is a verb");
}

#[test]
fn help_names_every_command_and_explains_each() {
    let all = help(&[]).expect("there is help");
    for verb in Command::command().get_subcommands() {
        assert!(all.contains(verb.get_name()), "{}", verb.get_name());
        let explained = help(&[verb.get_name().to_owned()]).expect("each command is explained");
        for nested in verb.get_subcommands() {
            let usage = format!("Usage: {} {}", verb.get_name(), nested.get_name());
            assert!(explained.contains(&usage), "{explained}");
        }
        assert!(!explained.contains("Usage:  "), "{explained}");
    }
    assert!(all.ends_with("and you are told what is wrong."), "{all}");
    assert_eq!(help(&["nonsense".to_owned()]), Err("⚠ There is no command `nonsense`.\nTry `help`.".to_owned()));
}

#[test]
fn help_for_a_command_is_no_prose_and_may_have_words_after_it() {
    let explained = |verb: &str| help(&[verb.to_owned()]).expect("it is explained");
    for (line, verb) in [
        ("help new project", "new"),
        ("!help new project", "new"),
        ("Help New project myapp", "new"),
        ("help members add", "members"),
        ("help !git", "git"),
        ("help status?", "status"),
        ("!help status now", "status"),
    ] {
        let Command::Help { topic } = command(line) else { panic!("{line} asks for help") };
        assert_eq!(help(&topic), Ok(explained(verb)), "{line}");
    }
    let Command::Help { topic } = command("help foo") else { panic!("it asks for help") };
    assert_eq!(help(&topic), Err("⚠ There is no command `foo`.\nTry `help`.".to_owned()));
}

#[test]
fn help_shows_how_a_command_is_written() {
    let explained = |verb: &str| help(&[verb.to_owned()]).expect("it is explained");
    insta::assert_snapshot!(explained("stacks"), @r"
    ```
    List the stacks: their files, their language servers, and what they lack

    Usage: stacks list

    Check your own stacks, and tell by file and line what is wrong

    Usage: stacks check [name]

    Arguments:
      [NAME]  The stack; all of your own when absent
    ```
    ");
    insta::assert_snapshot!(explained("git"), @r"
    ```
    Run git in the project: !git log --oneline -5; `git audit` tells what the remote's credential was used for

    Usage: !git <arg>…

    Arguments:
      <ARGS>...  What follows git
    ```
    ");
    insta::assert_snapshot!(explained("diff"), @r"
    ```
    Show what the last turn changed in the files; with paths: !diff <path>…

    Usage: diff
           !diff <path>…

    Arguments:
      [PATHS]...  Paths to look at
    ```
    ");
    insta::assert_snapshot!(explained("approve"), @r"
    ```
    Allow what the agent asks permission for

    Usage: approve <question>

    Arguments:
      <QUESTION>  The six characters that the question was told with, such as 3fa81c
    ```
    ");
    insta::assert_snapshot!(explained("logs"), @r"
    ```
    Show the latest lines of the log of the project's sled

    Usage: logs [options]

    Options:
          --lines <LINES>  How many lines [default: 30]
    ```
    ");
    insta::assert_snapshot!(explained("members"), @r"
    ```
    Tell who may use a project

    Usage: members [project]

    Arguments:
      [PROJECT]  The project; the chosen one when absent

    Let a person use a project; with its first member it is no longer open to everybody

    Usage: members add <person> [project]

    Arguments:
      <PERSON>   The person's id, such as `@ann:example.org`
      [PROJECT]  The project; the chosen one when absent

    Take that back

    Usage: members remove <person> [project]

    Arguments:
      <PERSON>   The person's id, such as `@ann:example.org`
      [PROJECT]  The project; the chosen one when absent
    ```
    ");
}

#[test]
fn words_that_begin_with_a_verb_may_be_a_command_with_a_slip() {
    for words in ["git status", "Stop.", "status of the build?", " diff src/main.rs", "delete everything"] {
        assert!(begins_like_a_command(words), "{words}");
    }
    for words in ["", "what does this project do?", "statuses", "please stop", "?"] {
        assert!(!begins_like_a_command(words), "{words}");
    }
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
                    // What people wrote stands in it as code.
                    let only_words =
                        |event| matches!(event, Event::Text(_) | Event::Code(_) | Event::SoftBreak | Event::HardBreak);
                    let inside =
                        |event: &Event| !matches!(event, Event::Start(Tag::Paragraph) | Event::End(TagEnd::Paragraph));
                    assert!(Parser::new(&answer).filter(inside).all(only_words), "{line:?}: {answer:?}");
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
        assert!(matches!(read(line), Said::Misused(_)), "{line} is misuse");
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
            Command::Logs { lines }, Command::Diff { paths: args.clone() }, Command::Git { args }, Command::Help { topic: vec!["new".into(), "-x".into()] },
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
