//! The paths that a file names, with `use` declarations followed, and which of them are only built for tests.

use std::collections::BTreeMap;

use super::lexer::Token;

/// What was found in one file.
#[derive(Debug, Default)]
pub struct Found {
    pub paths: Vec<Named>,
    /// Each `select!` that does not begin with `biased;`.
    pub fair_selects: Vec<Place>,
    /// The modules that this file declares under `cfg(test)` or feature `sim`, as paths from the root.
    pub test_modules: Vec<Vec<String>>,
}

/// A path, from the crate's root (`crate`) or a library's name on.
#[derive(Debug)]
pub struct Named {
    pub segments: Vec<String>,
    /// It is followed by `::*` in a `use`.
    pub glob: bool,
    pub line: usize,
    pub in_test: bool,
}

#[derive(Debug)]
pub struct Place {
    pub line: usize,
    pub in_test: bool,
}

/// Reads the tokens of the file that is `module`.
pub fn read(module: &[String], tokens: &[(Token, usize)]) -> Found {
    let in_test = test_code(tokens);
    let mut reader = Reader { tokens, at: 0, scopes: Vec::new(), root: module, imports: BTreeMap::new() };
    let mut found = Found::default();
    // Imports first: Rust lets them stand below their use.
    reader.file(&in_test, &mut Found::default());
    reader.at = 0;
    reader.file(&in_test, &mut found);
    found
}

struct Reader<'a> {
    tokens: &'a [(Token, usize)],
    at: usize,
    /// One for each open brace: the name, if it is a module's.
    scopes: Vec<Option<String>>,
    root: &'a [String],
    /// What names that were imported stand for. Scopes are not told apart: a name stands for the same thing in a file, or
    /// the file is hard to read for more than this.
    imports: BTreeMap<String, Vec<String>>,
}

impl Reader<'_> {
    fn file(&mut self, in_test: &[bool], found: &mut Found) {
        while self.at < self.tokens.len() {
            let (start, line, in_test) = (self.at, self.tokens[self.at].1, in_test[self.at]);
            let is_field = start > 0 && self.other(start - 1, '.') && !(start > 1 && self.other(start - 2, '.'));
            self.at += 1;
            match &self.tokens[start].0 {
                Token::Other('{') => self.scopes.push(None),
                Token::Other('}') => drop(self.scopes.pop()),
                Token::Sep => {
                    // `::tokio::spawn`, or the rest of `<T as Trait>::method`, which names nothing by itself.
                    let rest_of_type = start > 0 && self.other(start - 1, '>');
                    if let Some(word) = self.word(self.at).map(str::to_owned).filter(|_| !rest_of_type) {
                        self.at += 1;
                        let segments = self.path(vec![word]);
                        found.paths.push(Named { segments, glob: false, line, in_test });
                    }
                }
                Token::Word(word) if word == "mod" => self.module(in_test, found),
                Token::Word(word) if word == "use" && !self.other(self.at, '<') => {
                    self.use_tree(Vec::new(), in_test, found);
                }
                Token::Word(word) if word == "extern" && self.word(self.at) == Some("crate") => {
                    self.at += 1;
                    self.use_tree(Vec::new(), in_test, found);
                }
                Token::Word(word) if word == "select" && self.other(self.at, '!') => {
                    let biased = self.word(self.at + 2) == Some("biased");
                    found.fair_selects.extend((!biased).then_some(Place { line, in_test }));
                }
                Token::Word(word) if !is_field => {
                    let path = self.path(vec![word.clone()]);
                    // One word is a name of this scope, and whatever it stands for was named when it was imported.
                    if path.len() > 1 {
                        if path.last().is_some_and(|last| last == "select") && self.other(self.at, '!') {
                            self.at -= 1;
                        }
                        found.paths.push(Named { segments: self.absolute(path), glob: false, line, in_test });
                    }
                }
                _ => {}
            }
        }
    }

    /// Behind the word `mod`: opens a scope, or notes a file that is only built for tests.
    fn module(&mut self, in_test: bool, found: &mut Found) {
        let Some(name) = self.word(self.at).map(str::to_owned) else { return };
        self.at += 1;
        if self.other(self.at, '{') {
            self.at += 1;
            self.scopes.push(Some(name));
        } else if in_test {
            let mut path = self.here();
            path.push(name);
            found.test_modules.push(path);
        }
    }

    /// The rest of a path that begins with `segments`, up to where it is no longer plain (`::<`, or a `use` list).
    fn path(&mut self, mut segments: Vec<String>) -> Vec<String> {
        while self.token(self.at) == Some(&Token::Sep) {
            let Some(word) = self.word(self.at + 1) else { break };
            segments.push(word.to_owned());
            self.at += 2;
        }
        segments
    }

    /// One branch of a `use`, behind `prefix`.
    fn use_tree(&mut self, prefix: Vec<String>, in_test: bool, found: &mut Found) {
        if self.token(self.at) == Some(&Token::Sep) {
            self.at += 1;
        }
        let line = self.tokens.get(self.at).map_or(0, |(_, line)| *line);
        let mut segments = prefix;
        if let Some(word) = self.word(self.at).map(str::to_owned) {
            self.at += 1;
            // `{self}` is the list's own prefix; at the beginning of a path, `self` is this module.
            if word != "self" || segments.is_empty() {
                segments.push(word);
            }
            segments = self.path(segments);
        }
        if self.token(self.at) == Some(&Token::Sep) {
            self.at += 1;
        }
        if self.other(self.at, '{') {
            self.at += 1;
            while self.at < self.tokens.len() && !self.other(self.at, '}') {
                self.use_tree(segments.clone(), in_test, found);
                if self.other(self.at, ',') {
                    self.at += 1;
                }
            }
            self.at += 1;
            return;
        }
        let glob = self.other(self.at, '*');
        if glob {
            self.at += 1;
        }
        let segments = self.absolute(segments);
        let mut name = segments.last().cloned();
        if self.word(self.at) == Some("as") {
            name = self.word(self.at + 1).map(str::to_owned);
            self.at += 2;
        }
        if let Some(name) = name.filter(|_| !glob) {
            self.imports.insert(name, segments.clone());
        }
        if !(glob || self.other(self.at, ',') || self.other(self.at, '}') || self.other(self.at, ';')) {
            // Not a `use` as this reader knows it; go on behind it rather than stand still.
            self.at += 1;
        }
        found.paths.push(Named { segments, glob, line, in_test });
    }

    /// `path` from the crate's root on, if it is one of this crate's, or as the import it begins with has it.
    fn absolute(&self, path: Vec<String>) -> Vec<String> {
        let here = || std::iter::once("crate".to_owned()).chain(self.here());
        match path[0].as_str() {
            "crate" => path,
            "self" => here().chain(path[1..].iter().cloned()).collect(),
            "super" => {
                let supers = path.iter().take_while(|word| *word == "super").count();
                let mut base: Vec<String> = here().collect();
                base.truncate(base.len().saturating_sub(supers).max(1));
                base.into_iter().chain(path[supers..].iter().cloned()).collect()
            }
            first => match self.imports.get(first) {
                // A name imported under its own name (`use rand;`) would be replaced by itself.
                Some(import) if import[0] != first => import.iter().chain(&path[1..]).cloned().collect(),
                _ => path,
            },
        }
    }

    /// The module at this point of the file.
    fn here(&self) -> Vec<String> {
        self.root.iter().chain(self.scopes.iter().flatten()).cloned().collect()
    }

    fn token(&self, at: usize) -> Option<&Token> {
        self.tokens.get(at).map(|(token, _)| token)
    }

    fn word(&self, at: usize) -> Option<&str> {
        match self.token(at) {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn other(&self, at: usize, c: char) -> bool {
        self.token(at) == Some(&Token::Other(c))
    }
}

/// For each token, whether it belongs to an item under `cfg(test)` or feature `sim`.
fn test_code(tokens: &[(Token, usize)]) -> Vec<bool> {
    let is = |at: usize, c: char| matches!(tokens.get(at), Some((Token::Other(found), _)) if *found == c);
    let mut in_test = vec![false; tokens.len()];
    let mut at = 0;
    while at < tokens.len() {
        let (start, inner) = (at, is(at + 1, '!'));
        let mut found = false;
        // All attributes of one item, in whatever order.
        while is(at, '#') && (is(at + 1, '[') || (is(at + 1, '!') && is(at + 2, '['))) && is(at + 1, '!') == inner {
            let end = closing(tokens, at + 1 + usize::from(inner));
            found |= is_test_cfg(&tokens[at..end]);
            at = end;
        }
        if found {
            let end = if inner { end_of_scope(tokens, at) } else { end_of_item(tokens, at) };
            in_test[start..end].fill(true);
            at = end;
        } else if at == start {
            at += 1;
        }
    }
    in_test
}

fn is_test_cfg(attribute: &[(Token, usize)]) -> bool {
    let has = |wanted: &str| attribute.iter().any(|(token, _)| matches!(token, Token::Word(word) if word == wanted));
    let sim = attribute.iter().any(|(token, _)| *token == Token::Text("sim".into()));
    has("cfg") && !has("not") && (has("test") || (has("feature") && sim))
}

/// Behind the bracket that closes the one at `at`.
fn closing(tokens: &[(Token, usize)], at: usize) -> usize {
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate().skip(at) {
        depth += bracket(token);
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Behind the item that begins at `at`: at its semicolon, its closing brace, or, for a field or a variant, its comma.
fn end_of_item(tokens: &[(Token, usize)], at: usize) -> usize {
    const ITEMS: &[&str] = &[
        "async",
        "const",
        "enum",
        "extern",
        "fn",
        "impl",
        "let",
        "macro_rules",
        "mod",
        "static",
        "struct",
        "trait",
        "type",
        "union",
        "unsafe",
        "use",
    ];
    let mut first = at;
    if matches!(&tokens.get(first), Some((Token::Word(word), _)) if word == "pub") {
        first += 1;
        if matches!(tokens.get(first), Some((Token::Other('('), _))) {
            first = closing(tokens, first);
        }
    }
    let is_item = matches!(&tokens.get(first), Some((Token::Word(word), _)) if ITEMS.contains(&word.as_str()));
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate().skip(first) {
        depth += bracket(token);
        match token {
            _ if depth < 0 => return i,
            Token::Other('}') | Token::Other(';') if depth == 0 => return i + 1,
            Token::Other(',') if depth == 0 && !is_item => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// At the brace that closes the scope which `at` is in, or the end of the file.
fn end_of_scope(tokens: &[(Token, usize)], at: usize) -> usize {
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate().skip(at) {
        depth += bracket(token);
        if depth < 0 {
            return i;
        }
    }
    tokens.len()
}

fn bracket(token: &Token) -> i32 {
    match token {
        Token::Other('(' | '[' | '{') => 1,
        Token::Other(')' | ']' | '}') => -1,
        _ => 0,
    }
}
