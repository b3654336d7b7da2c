//! Rust source as tokens: enough to tell code from comments and strings, and no more.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Also keywords; a raw identifier without its `r#`.
    Word(String),
    /// The text of a string, escapes as written. Character and number literals are left out.
    Text(String),
    /// `::`
    Sep,
    Other(char),
}

/// The tokens of `source`, each with its line, counted from 1.
pub fn lex(source: &str) -> Vec<(Token, usize)> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while lexer.at < lexer.chars.len() {
        let line = lexer.line;
        if let Some(token) = lexer.next() {
            tokens.push((token, line));
        }
    }
    tokens
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        self.line += usize::from(c == '\n');
        c
    }

    /// The next token, if what comes next is one that counts.
    fn next(&mut self) -> Option<Token> {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => self.line_comment(),
            ('/', '*') => self.block_comment(),
            ('"', _) => return Some(self.string()),
            ('\'', _) => self.char_or_lifetime(),
            (':', ':') => {
                self.at += 2;
                return Some(Token::Sep);
            }
            (c, _) if c == '_' || c.is_alphabetic() => return Some(self.word()),
            (c, _) if c.is_ascii_digit() => self.number(),
            (c, _) if c.is_whitespace() => drop(self.bump()),
            _ => return Some(Token::Other(self.bump())),
        }
        None
    }

    fn line_comment(&mut self) {
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            self.bump();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.bump();
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) -> Token {
        self.bump();
        let mut text = String::new();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            if self.peek(0) == '\\' {
                text.push(self.bump());
            }
            text.push(self.bump());
        }
        self.bump();
        Token::Text(text)
    }

    /// After `r`, `br` or `cr`: `#"..."#` with any number of `#`.
    fn raw_string(&mut self) -> Token {
        let mut hashes = 0;
        while self.bump() == '#' {
            hashes += 1;
        }
        let mut text = String::new();
        while self.at < self.chars.len() {
            let c = self.bump();
            if c == '"' && (0..hashes).all(|i| self.peek(i) == '#') {
                self.at += hashes;
                break;
            }
            text.push(c);
        }
        Token::Text(text)
    }

    fn char_or_lifetime(&mut self) {
        self.bump();
        if self.peek(0) == '\\' {
            // The escaped character may itself be a quote.
            self.at += 2;
            while self.at < self.chars.len() && self.bump() != '\'' {}
        } else if self.peek(1) == '\'' {
            self.bump();
            self.bump();
        } else {
            self.word();
        }
    }

    fn number(&mut self) {
        // A point belongs to it unless it begins a range or a method.
        while self.peek(0).is_alphanumeric()
            || self.peek(0) == '_'
            || (self.peek(0) == '.' && self.peek(1).is_ascii_digit())
        {
            self.bump();
        }
    }

    fn word(&mut self) -> Token {
        let mut word = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            word.push(self.bump());
        }
        match (word.as_str(), self.peek(0), self.peek(1)) {
            ("b" | "c", '"', _) => self.string(),
            ("r" | "br" | "cr", '"', _) | ("r" | "br" | "cr", '#', '"' | '#') => self.raw_string(),
            ("b", '\'', _) => {
                self.char_or_lifetime();
                Token::Text(String::new())
            }
            ("r", '#', _) => {
                self.bump();
                self.word()
            }
            _ => Token::Word(word),
        }
    }
}
