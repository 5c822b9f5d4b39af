//! The stacks' own proof (STK-1), each in its own container of Debian's packages, over SSH: a hello-world builds and
//! runs, its tests run with the usual tool, the language server answers, and a dependency is fetched.
//!
//! A registry that this machine cannot reach is found out by asking it from the host, and said. npm's and `PyPI`'s must
//! be reached: without them the lists of packages of the upstream variants could not be proven.

use std::{fs, io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    gateway::Gateway,
    home::Home,
    lsp::Server,
    process, product,
    ssh::{self, Door},
    wait,
};
use tokio::process::Command;

/// A stack's image from Debian's packages, on a busy machine.
const BUILD: Duration = Duration::from_mins(10);
/// How long a registry may take to answer before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(20);
/// The project that every test makes.
const PROJECT: &str = "hello";

/// A project of one stack.
struct Project {
    home: Home,
    gateway: Gateway,
    /// What was said when it was made.
    made: String,
}

impl Project {
    async fn of(stack: &str) -> Result<Self> {
        let home = Home::practice().await?;
        // Ahead, because it takes longer than a person's patience with `new project` on a busy machine.
        process::run(home.musher()?.args(["images", "build", stack]), b"", BUILD).await?.success()?;
        let mut gateway = Gateway::console(&home).await?;
        let made = gateway.make(PROJECT, &format!("--stack {stack}")).await?;
        ensure!(made.contains(stack), "{made}");
        Ok(Self { home, gateway, made })
    }

    /// Writes a file of the project, as an editor does.
    async fn put(&self, path: &str, text: &str) -> Result<()> {
        let line = format!("mkdir -p \"$(dirname /workspace/{path})\" && cat > /workspace/{path}");
        let host = Door::Proxy.host(PROJECT);
        ssh::run(&self.home, "ssh", [host.as_str(), &line], text, wait::SHORT).await?.success().map(drop)
    }

    /// Runs a command in the project's folder, and gives what it prints.
    async fn run(&self, line: &str) -> Result<String> {
        let line = format!("cd /workspace && {line}");
        let host = Door::Proxy.host(PROJECT);
        ssh::run(&self.home, "ssh", [host.as_str(), &line], "", BUILD).await?.success()
    }

    async fn server(&self, command: &str) -> Result<Server> {
        Server::start(&self.home, Door::Proxy, PROJECT, command).await
    }

    /// The toolchain is on every session's PATH, and nothing of it lies in HOME, which outlives the image.
    async fn has(&self, tools: &[&str]) -> Result<()> {
        for tool in tools {
            let found = self.run(&format!("command -v {tool}")).await.with_context(|| format!("{tool} is missing"))?;
            ensure!(!found.starts_with("/home"), "{tool} lies in HOME: {found}");
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.gateway.finish().await.map(drop)
    }
}

/// Whether a registry answers from this host; where not, that is said past the capture of a test's output.
async fn reachable(what: &str, url: &str) -> Result<bool> {
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    match http.get(url).send().await {
        Ok(_) => Ok(true),
        Err(error) => {
            let mut stderr = std::io::stderr();
            writeln!(
                stderr,
                "NOT RUN: {what} is out of reach from this machine ({url}: {error}); no dependency fetched"
            )?;
            Ok(false)
        }
    }
}

/// The first https address in what a client says of its registry.
fn address(said: &str) -> Result<&str> {
    let from = said.find("https://").with_context(|| format!("no address in: {said}"))?;
    let end = said[from..].find([',', '|', '<', '"', '\n', ' ']).map_or(said.len(), |end| from + end);
    Ok(&said[from..end])
}

/// The files of a built-in stack beside its fragments.
fn stack_file(path: &str) -> Result<String> {
    let path = product::repository()?.join("stacks").join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[tokio::test]
async fn rust_builds_tests_and_fetches() -> Result<()> {
    let project = Project::of("rust").await?;
    project.has(&["cargo", "rustc", "rust-analyzer", "cargo-clippy", "rustfmt", "cc"]).await?;
    project.put("Cargo.toml", "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n").await?;
    let main = "fn greet() -> &'static str {\n    \"Hello, world!\"\n}\n\nfn main() {\n    println!(\"{}\", greet());\n}\n\n#[test]\nfn greets() {\n    assert_eq!(greet(), \"Hello, world!\");\n}\n";
    project.put("src/main.rs", main).await?;
    assert_eq!(project.run("cargo build -q --offline && ./target/debug/hello").await?, "Hello, world!\n");
    let tested = project.run("cargo test --offline 2>&1").await?;
    assert!(tested.contains("test greets ... ok"), "{tested}");
    project.run("cargo clippy -q --offline && cargo fmt --check").await?;

    let wrong = main.replace("println!(\"{}\", greet());", "let _: u32 = greet();");
    project.put("src/main.rs", &wrong).await?;
    let mut server = project.server("rust-analyzer").await?;
    assert_eq!(server.introduction["serverInfo"]["name"], "rust-analyzer");
    server.open("src/main.rs", "rust", &wrong).await?;
    let found = server.diagnostics("src/main.rs").await?;
    assert!(found.iter().any(|diagnostic| diagnostic["code"] == "E0308"), "{found:#?}");
    server.end().await?;

    // The same crate on the host first, with a store of its own: cargo has no word for where its registry is.
    let probe = product::scratch()?;
    let dependency = "\n[dependencies]\nitoa = \"=1.0.15\"\n";
    let manifest = |name: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{dependency}\n[workspace]\n")
    };
    fs::create_dir(probe.path().join("src"))?;
    fs::write(probe.path().join("src/lib.rs"), "")?;
    fs::write(probe.path().join("Cargo.toml"), manifest("probe"))?;
    let mut fetch = Command::new("cargo");
    fetch.arg("fetch").current_dir(probe.path()).env("CARGO_HOME", probe.path().join("home"));
    let fetched = process::run(&mut fetch, b"", wait::LONG).await?;
    if fetched.code == Some(0) {
        project.put("Cargo.toml", &manifest("hello")).await?;
        project.put("src/main.rs", "fn main() {\n    println!(\"{}\", itoa::Buffer::new().format(42));\n}\n").await?;
        assert_eq!(project.run("cargo run -q").await?, "42\n");
    } else {
        writeln!(std::io::stderr(), "NOT RUN: cargo's registry is out of reach from this machine: {fetched}")?;
    }
    project.end().await
}

#[tokio::test]
async fn node_runs_tests_and_fetches_and_its_list_of_packages_is_a_language_server() -> Result<()> {
    let project = Project::of("node").await?;
    project.has(&["node", "npm", "tsc"]).await?;
    assert!(project.made.contains("lacks a language server"), "{}", project.made);
    let manifest = "{ \"name\": \"hello\", \"private\": true, \"type\": \"module\", \"scripts\": { \"test\": \"node --test\" } }\n";
    project.put("package.json", manifest).await?;
    project.put("greet.ts", "export const greet = (name: string): string => `Hello, ${name}!`;\n").await?;
    project.put("main.js", "import { greet } from \"./greet.js\";\nconsole.log(greet(\"world\"));\n").await?;
    let test = "import test from \"node:test\";\nimport assert from \"node:assert\";\nimport { greet } from \"./greet.js\";\ntest(\"greets\", () => assert.equal(greet(\"world\"), \"Hello, world!\"));\n";
    project.put("greet.test.js", test).await?;
    project.run("tsc --target es2020 --module es2020 greet.ts").await?;
    assert_eq!(project.run("node main.js").await?, "Hello, world!\n");
    let tested = project.run("npm test").await?;
    assert!(tested.contains("pass 1") && tested.contains("fail 0"), "{tested}");

    // The probe that other languages rely on says yes where it must.
    let registry = project.run("npm config get registry").await?;
    assert!(reachable("npm's registry", address(&registry)?).await?, "npm's registry must be reached: {registry}");
    project.run("npm install --no-audit --no-fund ms@2.1.3").await?;
    project.put("days.js", "import ms from \"ms\";\nconsole.log(ms(\"2 days\"));\n").await?;
    assert_eq!(project.run("node days.js").await?, "172800000\n");

    // Debian has no language server for JavaScript; the upstream variant's list is tried on Debian's Node.js.
    assert_eq!(project.run("command -v typescript-language-server || echo none").await?, "none\n");
    for file in ["package.json", "package-lock.json"] {
        project.put(&format!("server/{file}"), &stack_file(&format!("node/language-server/{file}"))?).await?;
    }
    project.run("cd server && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier").await?;
    let command = "server/node_modules/.bin/typescript-language-server --stdio";
    let mut server = project.server(command).await?;
    let wrong = "const count: number = \"many\";\nconst text = \"abc\";\ntext.toUpp\n";
    project.put("wrong.ts", wrong).await?;
    server.open("wrong.ts", "typescript", wrong).await?;
    let found = server.diagnostics("wrong.ts").await?;
    assert!(found.iter().any(|diagnostic| diagnostic["code"] == 2322), "{found:#?}");
    let proposed = server.completion("wrong.ts", 2, 10).await?;
    assert!(proposed.iter().any(|label| label == "toUpperCase"), "{proposed:?}");
    server.end().await?;
    project.end().await
}

#[tokio::test]
async fn python_runs_tests_and_fetches_and_both_its_language_servers_answer() -> Result<()> {
    let project = Project::of("python").await?;
    project.has(&["python3", "python", "pip3", "pylsp", "pytest"]).await?;
    project
        .put(
            "hello.py",
            "def greet():\n    return \"Hello, world!\"\n\n\nif __name__ == \"__main__\":\n    print(greet())\n",
        )
        .await?;
    let test = "import unittest\n\nfrom hello import greet\n\n\nclass Greets(unittest.TestCase):\n    def test_greets(self):\n        self.assertEqual(greet(), \"Hello, world!\")\n";
    project.put("test_hello.py", test).await?;
    assert_eq!(project.run("python3 hello.py").await?, "Hello, world!\n");
    let tested = project.run("python3 -m unittest 2>&1 && pytest -q").await?;
    assert!(tested.contains("Ran 1 test") && tested.contains("1 passed"), "{tested}");

    project.run("python3 -m venv .venv && .venv/bin/pip install -q six==1.17.0").await?;
    assert_eq!(project.run(".venv/bin/python -c 'import six; print(six.__version__)'").await?, "1.17.0\n");

    // The list of the upstream variant, in the way in which its fragment installs it.
    let list = stack_file("python/language-server/requirements.txt")?;
    project.put("server/requirements.txt", &list).await?;
    let install = "python3 -m venv server/venv && server/venv/bin/pip install -q --require-hashes --only-binary :all: --no-deps --no-cache-dir --requirement server/requirements.txt";
    project.run(install).await?;
    for command in ["pylsp", "server/venv/bin/pylsp"] {
        let mut server = project.server(command).await?;
        assert_eq!(server.introduction["serverInfo"]["name"], "pylsp", "{command}");
        let wrong = "import os\n\nprint(nothing)\nos.path.joi\n";
        server.open("wrong.py", "python", wrong).await?;
        let found = server.diagnostics("wrong.py").await?;
        let undefined = |message: &str| message.contains("undefined name 'nothing'");
        assert!(found.iter().any(|d| d["message"].as_str().is_some_and(undefined)), "{command}: {found:#?}");
        let proposed = server.completion("wrong.py", 3, 11).await?;
        assert!(proposed.iter().any(|label| label.starts_with("join(")), "{command}: {proposed:?}");
        server.end().await?;
    }
    project.end().await
}

#[tokio::test]
async fn go_builds_tests_and_its_language_server_answers() -> Result<()> {
    let project = Project::of("go").await?;
    project.has(&["go", "gofmt", "gopls", "gcc"]).await?;
    let main = "package main\n\nimport \"fmt\"\n\nfunc greet() string { return \"Hello, world!\" }\n\nfunc main() { fmt.Println(greet()) }\n";
    project.put("go.mod", "module example.org/hello\n\ngo 1.23\n").await?;
    project.put("main.go", main).await?;
    let test = "package main\n\nimport \"testing\"\n\nfunc TestGreets(t *testing.T) {\n\tif greet() != \"Hello, world!\" {\n\t\tt.Fail()\n\t}\n}\n";
    project.put("main_test.go", test).await?;
    assert_eq!(project.run("go build -o hello . && ./hello").await?, "Hello, world!\n");
    let tested = project.run("go vet ./... && go test ./...").await?;
    assert!(tested.starts_with("ok"), "{tested}");

    let wrong = main.replace("fmt.Println(greet())", "var _ int = greet()");
    project.put("main.go", &wrong).await?;
    let mut server = project.server("gopls").await?;
    assert_eq!(server.introduction["serverInfo"]["name"], "gopls");
    server.open("main.go", "go", &wrong).await?;
    let found = server.diagnostics("main.go").await?;
    assert!(found.iter().any(|diagnostic| diagnostic["code"] == "IncompatibleAssign"), "{found:#?}");
    server.end().await?;

    let registry = project.run("go env GOPROXY").await?;
    if reachable("Go's module proxy", address(&registry)?).await? {
        project.put("main.go", main).await?;
        project.run("go get golang.org/x/text@v0.22.0").await?;
    }
    project.end().await
}

#[tokio::test]
async fn ruby_runs_tests_and_its_language_server_answers() -> Result<()> {
    let project = Project::of("ruby").await?;
    project.has(&["ruby", "gem", "bundle", "rake", "rubocop", "typeprof", "gcc"]).await?;
    let hello = "# frozen_string_literal: true\n\n# Greets.\nmodule Hello\n  def self.greet(name)\n    \"Hello, #{name}!\"\n  end\nend\n\nputs Hello.greet('world') if $PROGRAM_NAME == __FILE__\n";
    project.put("hello.rb", hello).await?;
    let test = "require 'minitest/autorun'\nrequire_relative '../hello'\n\nclass HelloTest < Minitest::Test\n  def test_greets\n    assert_equal 'Hello, world!', Hello.greet('world')\n  end\nend\n";
    project.put("test/test_hello.rb", test).await?;
    project.put("Rakefile", "require 'rake/testtask'\n\nRake::TestTask.new\n").await?;
    assert_eq!(project.run("ruby hello.rb").await?, "Hello, world!\n");
    let tested = project.run("rake test").await?;
    assert!(tested.contains("1 runs, 1 assertions, 0 failures, 0 errors"), "{tested}");
    project.run("rubocop hello.rb").await?;

    let mut server = project.server("typeprof --lsp --stdio").await?;
    assert!(server.introduction["capabilities"]["completionProvider"].is_object(), "{}", server.introduction);
    let wrong = "def shout(text)\n  text.no_such_method\nend\n\nshout('x')\n";
    project.put("wrong.rb", wrong).await?;
    server.open("wrong.rb", "ruby", wrong).await?;
    let found = server.diagnostics("wrong.rb").await?;
    let undefined = |message: &str| message.contains("undefined method: String#no_such_method");
    assert!(found.iter().any(|d| d["message"].as_str().is_some_and(undefined)), "{found:#?}");
    server.end().await?;

    let registry = project.run("gem sources --list").await?;
    if reachable("the gems' registry", address(&registry)?).await? {
        project.run("gem install --no-document rack -v 3.1.8").await?;
        assert_eq!(project.run("ruby -e 'require %q(rack); puts Rack.release'").await?, "3.1.8\n");
    }
    project.end().await
}

#[tokio::test]
async fn java_builds_tests_and_says_that_it_has_no_language_server() -> Result<()> {
    let project = Project::of("jvm").await?;
    project.has(&["java", "javac", "mvn"]).await?;
    assert!(project.made.contains("lacks a language server"), "{}", project.made);
    assert_eq!(project.run("\"$JAVA_HOME/bin/javac\" --version").await?, project.run("javac --version").await?);
    let pom = "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  <groupId>org.example</groupId>\n  <artifactId>hello</artifactId>\n  <version>1</version>\n  <properties>\n    <maven.compiler.release>21</maven.compiler.release>\n    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>\n  </properties>\n  <dependencies>\n    <dependency>\n      <groupId>junit</groupId>\n      <artifactId>junit</artifactId>\n      <version>4.x</version>\n      <scope>test</scope>\n    </dependency>\n  </dependencies>\n</project>\n";
    project.put("pom.xml", pom).await?;
    let main = "public class Hello {\n    static String greet() {\n        return \"Hello, world!\";\n    }\n\n    public static void main(String[] arguments) {\n        System.out.println(greet());\n    }\n}\n";
    project.put("src/main/java/Hello.java", main).await?;
    let test = "import static org.junit.Assert.assertEquals;\n\nimport org.junit.Test;\n\npublic class HelloTest {\n    @Test\n    public void greets() {\n        assertEquals(\"Hello, world!\", Hello.greet());\n    }\n}\n";
    project.put("src/test/java/HelloTest.java", test).await?;
    // Without any repository: Debian's packages hold what a build needs.
    let tested = project.run("mvn -B -o -Dmaven.repo.local=/usr/share/maven-repo package").await?;
    assert!(tested.contains("Tests run: 1, Failures: 0, Errors: 0, Skipped: 0"), "{tested}");
    assert_eq!(project.run("java -cp target/hello-1.jar Hello").await?, "Hello, world!\n");
    assert_eq!(project.run("command -v jdtls || echo none").await?, "none\n");

    // What the upstream variant does with certificates, on Debian's Java: the same that the system trusts.
    project.put("TrustStore.java", &stack_file("jvm/TrustStore.java")?).await?;
    let count = "import java.security.KeyStore;\nimport javax.net.ssl.*;\npublic class Count {\n    public static void main(String[] a) throws Exception {\n        var all = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());\n        all.init((KeyStore) null);\n        System.out.println(((X509TrustManager) all.getTrustManagers()[0]).getAcceptedIssuers().length);\n    }\n}\n";
    project.put("Count.java", count).await?;
    let made = project
        .run("java TrustStore.java /etc/ssl/certs/ca-certificates.crt store && java -Djavax.net.ssl.trustStore=store Count.java")
        .await?;
    assert_eq!(made, project.run("java Count.java").await?, "Java trusts what the image trusts");

    let model = "unzip -p /usr/share/maven/lib/maven-model-builder-3.x.jar org/apache/maven/model/pom-4.0.0.xml";
    let registry = project.run(&format!("{model} | grep -A 4 '<repository>' | grep '<url>'")).await?;
    if reachable("Maven's repository", address(&registry)?).await? {
        project.run("mvn -B -q dependency:get -Dartifact=org.slf4j:slf4j-api:2.0.16").await?;
    }
    project.end().await
}

/// What is registered is what is there: a folder without a test here is not proven.
#[test]
fn every_built_in_stack_has_its_proof() -> Result<()> {
    let tests = include_str!("stacks_languages.rs");
    let mut proven = 0;
    for entry in fs::read_dir(product::repository()?.join("stacks"))? {
        let path = entry?.path();
        if path.join("markers").is_file() {
            let name = path.file_name().map(Path::new).context("a folder has a name")?.display().to_string();
            ensure!(tests.contains(&format!("Project::of(\"{name}\")")), "{name} is not proven");
            proven += 1;
        }
    }
    assert_eq!(proven, 6);
    Ok(())
}
