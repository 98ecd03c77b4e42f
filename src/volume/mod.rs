//! A volume as records and page contents: what the tree's keys mean. Knows no POSIX rules.
