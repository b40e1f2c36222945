// Package pages runs what the project's pages print: it reads the code blocks of a page, types their commands as a reader
// would, and compares what they print with the page.
//
// A page says what a reader does by its languages and by the line before a block:
//
//   - sh: commands, one a line. A line that ends with \, | or &&, or is followed by indented lines, goes on in the next one.
//     Each has to exit with status 0. What they print is not compared.
//   - console: a line with "$ " is a command, and the lines after it are everything that it prints. "..." stands for what
//     varies: in a line for any text, and as a line for any lines, also none. Runs of blanks count as one.
//   - text, after sh or console: everything that the last command has printed.
//   - any other language, after a line such as "Write `/etc/usher/usher.hcl`:": the content of the file, whose directory exists.
//   - "In a second terminal:" before a block: its commands run in another shell, and its last one may go on running once it
//     has printed what the page shows. "In the first terminal" is the one of blocks without such a line. Options.Elsewhere has the shells on other machines, such as "On a client".
//
// A test of the build tag e2e runs a page, a part of it or a block:
//
//	r := pages.NewReader(t, pages.Options{Shell: machine.Shell()})
//	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Install Usher"))
//	r.Follow(t, pages.Page(t, "docs/quickstart-files.md"))
//	r.Follow(t, pages.Find(t, "docs/commands.md", "$ usher status"))
//
// Find names a block by the beginning of its first line. Options.Replace has what is another in the test than on the page,
// such as the address of a gateway, and Options.Fails the commands whose exit status is another than 0.
//
// TestEveryBlockOfThePagesIsTested reads these calls in the tests: a block is tested if one of them names it, in literals,
// or the block's section or page. Only is for a test that runs one block of a section, and fails if there are more. A block
// that no test can run is in that test's list, with the reason.
package pages
