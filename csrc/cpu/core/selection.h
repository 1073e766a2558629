// Selection of an operation's implementation: what a test forces, and what this thread's last call took.
//
// Compiled once, like isa.cpp: all instruction sets share this state.
#pragma once

namespace gk {

// The implementation that every operation having one of this name tries first; nullptr: the order of its own list.
// For tests and measurements: it holds for the whole process.
const char* forced_implementation();
void force_implementation(const char* name);

// Of this thread's last call; "" before the first.
const char* last_implementation();
void note_implementation(const char* name);

}  // namespace gk
